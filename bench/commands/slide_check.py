"""`atlas-bench slide-check` and `atlas-bench slide-pair`, registered by `bench.cli`."""

from dataclasses import asdict
from pathlib import Path

from atlas_edge.cli import print_json
from atlas_edge.errors import GateFailed, UsageError
from atlas_edge.options import Count, Output


def slide_check(
    *features: Path,
    slides: Path,
    reference: str,
    tiles: Count = 256,
    min_cosine: float | None = None,
    outlines: Path | None = None,
    output: Output = Output(),
) -> None:
    """Compare the features of slides with those of a full-precision encoder on the same tiles; draw the tiles.

    Exit 3 where the budget is missed. Example:

        atlas-bench slide-check out/*.h5 --slides scans --reference my-student --min-cosine 0.99 --outlines drawn

    Args:
        features: HDF5 files that atlas-embed wrote.
        slides: Folder of their slides.
        reference: The full-precision encoder: a model folder, a registry name, or an fp32 bundle.
        tiles: Most tiles of each slide.
        min_cosine: Budget on the lower end of the 1st percentile of the cosine; on fewer than 36 slides nothing passes.
        outlines: Folder for thumbnails with the outlines of all tiles.
        output: What is printed.
    """
    screen = output.screen()
    if not features:
        raise UsageError("no features to check", hint="atlas-bench slide-check out/*.h5 --slides scans --reference M")
    from atlas_edge.bench.judge.gate import Verdict
    from atlas_edge.bench.slides.check import check_slides, features_of, read_features
    from atlas_edge.models.load import load_encoder

    files = [read_features(path) for path in features_of(features)]
    encoder = load_encoder(reference)
    report = check_slides(files, slides, encoder, most_tiles=tiles, min_cosine=min_cosine, outlines=outlines)
    for name, median in report.cosine_median.items():
        screen.print(f"{name}: {report.tiles[name]} tiles, cosine median {median:.5f}", soft_wrap=True)
    whole = report.agreement
    interval = whole.cosine_p1_interval
    screen.print(
        f"all {whole.tiles} tiles: cosine median {whole.cosine_median:.5f}, 1st percentile {whole.cosine_p1:.5f} "
        f"[{interval.low:.5f}, {interval.high:.5f}], worst {whole.cosine_worst:.5f}"
        + (f": {report.verdict}" if report.verdict else ""),
        soft_wrap=True,
    )
    for path in report.outlines:
        screen.print(f"drawn: {path}", soft_wrap=True)
    if output.json:
        print_json(asdict(report))
    if report.verdict not in (None, Verdict.PASS):
        raise GateFailed(f"cosine, 1st percentile: {report.verdict}", hint=report.advice)


def slide_pair(one: Path, two: Path, /, *, output: Output = Output()) -> None:
    """Compare the embeddings of one region on two scanners at the same physical places.

    Both files were embedded with --no-tissue and the same --tile-mpp, and the scans begin at the same place. Example:

        atlas-bench slide-pair hamamatsu.h5 olympus.h5

    Args:
        one: HDF5 file that atlas-embed wrote.
        two: The other scanner's.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.bench.slides.check import compare_scans, read_features

    found = compare_scans(read_features(one), read_features(two))
    shares = ", ".join(f"top-{k} {share:.0%}" for k, share in found.top_k.items())
    screen.print(
        f"{found.positions} places on both: mean cosine of twins {found.cosine:.4f}; twin among the nearest: {shares}",
        soft_wrap=True,
    )
    if output.json:
        print_json(asdict(found))
