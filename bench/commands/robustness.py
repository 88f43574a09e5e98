"""`atlas-bench robustness A [B …]`, registered by `bench.cli`."""

from typing import Annotated

from annotated_types import Ge
from cyclopts import Parameter, validators

from atlas_edge.bench.options import AccuracyTiles, ReportOptions
from atlas_edge.errors import InputError, UsageError
from atlas_edge.options import Flag, Output, Seed, Threads


def robustness(
    *candidates: str,
    reference: str,
    tiles: AccuracyTiles,
    shift_tiles: Annotated[int, Ge(2), Parameter(validator=validators.Number(gte=2))] = 96,
    robustness_k: Annotated[int, Ge(1), Parameter(validator=validators.Number(gte=1))] = 11,
    robustness_paired: Flag = False,
    seed: Seed = 0,
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
    from atlas_edge.bench.accuracy.sweep import SWEEP
    from atlas_edge.bench.commands.accuracy import compared, hand_out, tile_sets
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.options import AccuracyOptions
    from atlas_edge.bench.report.files import check_report_folder
    from atlas_edge.bench.report.terminal import print_accuracy

    screen = output.screen()
    if not candidates:
        raise UsageError("no bundle to compare", hint="atlas-bench robustness BUNDLE --reference MODEL --eval TILES")
    check_report_folder(report.report, overwrite=report.overwrite)
    evaluation, fitted = tile_sets(tiles)
    options = AccuracyOptions(
        stress_tiles=shift_tiles, robustness_k=robustness_k, robustness_paired=robustness_paired, seed=seed
    )
    with open_encoders(candidates, reference, threads=threads, device=device) as opened:
        sizes = {label: encoder.spec.embed_dim for label, encoder in opened.encoders.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"embeddings of {', '.join(f'{size} numbers ({label})' for label, size in sizes.items())} cannot be "
                "compared tile by tile",
                hint="give as --reference the encoder that the bundles were made of",
            )
        found = compared(opened, evaluation, fitted, options, screen, stresses=SWEEP)
    print_accuracy(screen, found, details=True)
    hand_out(found, evaluation, report, output)
