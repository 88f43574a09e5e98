"""`atlas-bench robustness A [B …]`, registered by `bench.cli`."""

import sys
from typing import Annotated

from annotated_types import Ge
from cyclopts import Parameter, validators

from atlas_edge.bench.options import AccuracyTiles, ReportOptions
from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, Output, Threads


def robustness(
    *candidates: str,
    reference: str,
    tiles: AccuracyTiles,
    shift_tiles: Annotated[int, Ge(2), Parameter(validator=validators.Number(gte=2))] = 96,
    robustness_k: int = 11,
    robustness_paired: Flag = False,
    seed: int = 0,
    report: ReportOptions = ReportOptions(),
    threads: Threads = None,
    device: str | None = None,
    output: Output = Output(),
) -> None:
    """Ask whether quantization costs robustness: full precision against bundles, paired, over shifts by strength.

    Tiles at half to twice their µm per pixel, recorded by other scanners, stained stronger and weaker, compressed and
    out of focus; how much further than the full-precision encoder a bundle moves, and what its probe loses there, with
    95 % intervals by slide. PathoROB's index, plismbench and croma's margins where the tiles have the columns (and
    croma is installed). Example:

        atlas-bench robustness bundles/s-openvino-int8 --reference s --eval tiles --report reports/robustness

    Args:
        candidates: Bundle folders, model folders or registry names.
        reference: The full-precision encoder.
        tiles: On which tiles.
        shift_tiles: Tiles under each shift, balanced over the labels.
        robustness_k: Neighbours of the robustness index (11 Camelyon, 61 TCGA, 46 Tolkach).
        robustness_paired: Neighbours within paired 2 x 2 subsets, pooled, as PathoROB has them on TCGA.
        seed: Seed of every bootstrap.
        report: Where the report goes.
        threads: Inference threads; the runtime's own choice when left out.
        device: What bundles run on, as their runtime calls it; models in PyTorch stay on the processor.
        output: What is printed.
    """
    from atlas_edge.bench.accuracy.measure import accuracy_report
    from atlas_edge.bench.accuracy.sweep import SWEEP
    from atlas_edge.bench.commands.accuracy import tile_sets
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.machine import this_machine
    from atlas_edge.bench.options import AccuracyOptions
    from atlas_edge.bench.progress import progress_bar
    from atlas_edge.bench.report.files import check_report_folder, write_report
    from atlas_edge.bench.report.pictures import worst_tiles
    from atlas_edge.bench.report.schema import Report
    from atlas_edge.bench.report.terminal import print_accuracy
    from atlas_edge.bench.report.unnamed import unnamed_report

    screen = output.screen()
    if not candidates:
        raise UsageError("no bundle to compare", hint="atlas-bench robustness BUNDLE --reference MODEL --eval TILES")
    check_report_folder(report.report, overwrite=report.overwrite)
    evaluation, fitted = tile_sets(tiles)
    options = AccuracyOptions(
        stress_tiles=shift_tiles, robustness_k=robustness_k, robustness_paired=robustness_paired, seed=seed
    )
    with (
        open_encoders(candidates, reference, threads=threads, device=device) as opened,
        progress_bar(screen) as progress,
    ):
        measured = accuracy_report(
            opened.encoders,
            reference=opened.reference,
            evaluation=evaluation,
            fit=fitted,
            options=options,
            stresses=SWEEP,
            progress=progress,
        )
    found = Report(
        command=("atlas-bench", *sys.argv[1:]),
        machine=this_machine(),
        encoders=opened.facts,
        evaluation=evaluation.provenance(),
        fit=None if fitted is None else fitted.provenance(),
        accuracy=measured,
    )
    print_accuracy(screen, found, details=True)
    if not report.keep_paths:
        found = unnamed_report(found)
    shown = found.accuracy if report.pictures and report.report is not None else None
    worst = {} if shown is None else worst_tiles(shown, evaluation, labels=report.keep_paths)
    if output.json:  # first: a full disk must not take the figures with it
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    if report.report is not None:
        write_report(found, report.report, overwrite=report.overwrite, worst=worst, screen=screen)
