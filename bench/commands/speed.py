"""`atlas-bench speed A [B …]`, registered by `bench.cli`."""

import sys
from pathlib import Path

from atlas_edge.bench.options import SpeedOptions
from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, Output


def speed(
    *encoders: str,
    reference: str | None = None,
    options: SpeedOptions = SpeedOptions(),
    report: Path | None = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Time bundles and models side by side: latency of one tile, throughput, ratios with intervals, pace.

    All take turns in one process, so that a drift of the machine meets them alike. Energy is read where the machine
    has a counter (NVML, RAPL). Example:

        atlas-bench speed bundles/s-openvino-int8 s --sweep --cold-start --roofline --report reports/speed

    Args:
        encoders: Bundle folders, model folders or registry names.
        reference: Which of them the ratios refer to; the first when left out.
        options: What is measured.
        report: Folder to write report.json, report.md, report.html, junit.xml and benchmark.json into.
        overwrite: Replace that folder where it exists.
        dry_run: Open the encoders, say what would be measured, and stop.
        output: What is printed.
    """
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.report.files import check_report_folder, write_report
    from atlas_edge.bench.report.speed_rows import speed_rows
    from atlas_edge.bench.report.terminal import print_rows
    from atlas_edge.bench.report.unnamed import unnamed_report
    from atlas_edge.bench.speed.run import run_speed

    screen = output.screen()
    if not encoders:
        raise UsageError("no encoder to time", hint="atlas-bench speed BUNDLE [BUNDLE …]")
    if reference is not None and reference not in encoders:
        raise UsageError(f"--reference {reference} is not among {', '.join(encoders)}", hint="name it as one of them")
    if options.roofline and options.device is not None:
        raise UsageError("--roofline measures the processor", hint="leave --device or --roofline out")
    check_report_folder(report, overwrite=overwrite)
    with open_encoders(encoders, threads=options.threads, device=options.device) as opened:
        if dry_run:
            screen.print(f"would time {', '.join(opened.encoders)}; nothing was measured or written", markup=False)
            return
        first = list(opened.encoders)[0 if reference is None else encoders.index(reference)]
        found = run_speed(opened, options, reference=first, screen=screen)
    print_rows(screen, speed_rows(found))
    found = unnamed_report(found)
    if output.json:  # first: a full disk must not take the figures with it
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    if report is not None:
        write_report(found, report, overwrite=overwrite, screen=screen)
