"""`atlas-bench speed A [B …]`, registered by `bench.cli`."""

import sys
from pathlib import Path

from atlas_edge.bench.defaults import SCANNER_SECONDS, SLIDE_MM2
from atlas_edge.cli import console, set_verbosity
from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, Quiet, Verbose


def speed(
    *encoders: str,
    reference: str | None = None,
    batch: int = 8,
    rounds: int = 10,
    block_seconds: float = 0.5,
    threads: int | None = None,
    sweep: Flag = False,
    cold_start: Flag = False,
    roofline: Flag = False,
    scanner_seconds: float = SCANNER_SECONDS,
    slide_mm2: float = SLIDE_MM2,
    mpp: float | None = None,
    report: Path | None = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time bundles and models side by side: latency of one tile, throughput, ratios with intervals, pace.

    All take turns in one process, so that a drift of the machine meets them alike. Energy is read where the machine
    has a counter (NVML, RAPL). Example:

        atlas-bench speed bundles/s-openvino-int8 s --sweep --cold-start --roofline --report reports/speed

    Args:
        encoders: Bundle folders, model folders or registry names.
        reference: Which of them the ratios refer to; the first when left out.
        batch: Tiles a call in the throughput scenario, rounded up to whole batches of an encoder's graph.
        rounds: Turns of every encoder.
        block_seconds: How long a turn lasts, at least.
        threads: Inference threads; the runtime's own choice when left out.
        sweep: Measure throughput over batch, streams and threads, and name the best setting.
        cold_start: Measure opening to first embedding in fresh processes, with and without compiled-model cache, and
            peak memory.
        roofline: Measure this machine's matrix-product peaks, the encoders' fraction of them, and time by layer.
        scanner_seconds: Seconds that a scanner takes for one slide.
        slide_mm2: Scanned area of a slide, mm².
        mpp: µm per pixel of the tiles; the encoder's own, or 0.5.
        report: Folder to write report.json, report.md, report.html, junit.xml and benchmark.json into.
        overwrite: Replace that folder where it exists.
        dry_run: Open the encoders, say what would be measured, and stop.
        json: Print the report with its raw samples as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.report.files import check_report_folder, write_report
    from atlas_edge.bench.report.speed_rows import speed_rows
    from atlas_edge.bench.report.terminal import print_rows
    from atlas_edge.bench.report.unnamed import unnamed_report
    from atlas_edge.bench.speed.run import SpeedOptions, run_speed

    set_verbosity(quiet=quiet, verbose=verbose)
    if not encoders:
        raise UsageError("no encoder to time", hint="atlas-bench speed BUNDLE [BUNDLE …]")
    if reference is not None and reference not in encoders:
        raise UsageError(f"--reference {reference} is not among {', '.join(encoders)}", hint="name it as one of them")
    check_report_folder(report, overwrite=overwrite)
    screen = console(quiet=quiet)
    options = SpeedOptions(
        batch=batch,
        rounds=rounds,
        block_seconds=block_seconds,
        threads=threads,
        sweep=sweep,
        cold_start=cold_start,
        roofline=roofline,
        scanner_seconds=scanner_seconds,
        slide_mm2=slide_mm2,
        mpp=mpp,
    )
    with open_encoders(encoders, threads=threads) as opened:
        if dry_run:
            screen.print(f"would time {', '.join(opened.encoders)}; nothing was measured or written", markup=False)
            return
        first = list(opened.encoders)[0 if reference is None else encoders.index(reference)]
        found = run_speed(opened, options, reference=first, screen=screen)
    print_rows(screen, speed_rows(found))
    found = unnamed_report(found)
    if json:  # first: a full disk must not take the figures with it
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    if report is not None:
        write_report(found, report, overwrite=overwrite, screen=screen)
