"""`atlas-bench slide SLIDE`, registered by `bench.cli`."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.bench.options import SlideBenchOptions
from atlas_edge.cli import print_json
from atlas_edge.errors import UsageError
from atlas_edge.options import Output

if TYPE_CHECKING:
    from atlas_edge.bench.report.rows import Rows
    from atlas_edge.bench.slides.end_to_end import SlideBench


def slide(
    slide: Path | None = None,
    /,
    *,
    bundle: list[str],
    synthetic: str | None = None,
    keep: Path | None = None,
    options: SlideBenchOptions = SlideBenchOptions(),
    output: Output = Output(),
) -> None:
    """Time bundles on a whole slide: end to end, by stage, and whether they keep up with the scanner.

    All take turns in one run: the encoder alone, the whole way, one more decode thread, one more stream. Example:

        atlas-bench slide --synthetic 20000x20000 --bundle bundles/atlas2-s-openvino-int8

    Args:
        slide: Slide file; or leave it out and give --synthetic.
        bundle: Bundle folder; give it again for another one.
        synthetic: WIDTHxHEIGHT of a slide to draw, pixels of 0.5 µm.
        keep: File to keep the drawn slide in; it is deleted otherwise.
        options: How the bench runs.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.bench.slides.end_to_end import bench_slide

    with _slide(slide, synthetic, keep, screen) as path:
        report = bench_slide(path, bundle, options)
    show(report, screen)
    if output.json:
        print_json(asdict(report))


def show(report: "SlideBench", screen: Any) -> None:
    """Print what was found."""
    from atlas_edge.bench.report.terminal import print_rows

    for line in _lines(report):
        # Between words on a terminal; in a file a line stays a line.
        screen.print(line, markup=False, soft_wrap=not screen.is_terminal)
    print_rows(screen, [_rows(report)])


@contextmanager
def _slide(path: Path | None, synthetic: str | None, keep: Path | None, screen: Any) -> Iterator[Path]:
    if (path is None) == (synthetic is None):
        raise UsageError(
            "give a slide or --synthetic, one of the two", hint="atlas-bench slide --synthetic 20000x20000"
        )
    if path is not None:
        yield path
        return
    assert synthetic is not None
    size = re.fullmatch(r"(\d+)x(\d+)", synthetic)
    if size is None:
        raise UsageError(f"--synthetic {synthetic}: expected WIDTHxHEIGHT", hint="try --synthetic 20000x20000")
    from atlas_edge.slides.synthetic import make_slide

    with tempfile.TemporaryDirectory() as folder:
        made = make_slide(keep or Path(folder) / "synthetic.tif", int(size[1]), int(size[2]))
        screen.print(
            f"drew a SYNTHETIC slide of {made.width} x {made.height} px ({made.size_bytes / 1e6:.0f} MB, "
            f"{made.tissue_share:.0%} tissue)"
        )
        yield made.path


def _lines(report: "SlideBench") -> Iterator[str]:
    yield (
        f"{Path(report.slide).name} ({report.vendor}): {report.tiles} tiles at {report.mpp:.3g} µm per pixel from "
        f"level {report.level}; {report.measured_tiles} a turn"
    )
    if report.rival_tiles_per_s is not None:
        yield f"the program beside them: {report.rival_tiles_per_s:.1f} tiles/s"
    for name, bundle in report.bundles.items():
        verdict = "keeps up with" if bundle.keeps_up else "is slower than"
        yield (
            f"{name}: a slide in {bundle.turnaround_s:.0f} s {verdict} a scanner that takes {report.scanner_s:.0f} s; "
            f"bottleneck: {bundle.bottleneck}"
        )
    yield from report.notes


def _rows(report: "SlideBench") -> "Rows":
    from atlas_edge.bench.encoders import encoder_labels
    from atlas_edge.bench.report.rows import Rows, interval_text

    cells: dict[str, list[str]] = {"bundle": encoder_labels(list(report.bundles))}
    for bundle in report.bundles.values():
        done = report.measured_tiles * len(bundle.rounds_tiles_per_s["end to end"])
        figures = {
            "runtime, streams": f"{bundle.runtime}, {bundle.streams}",
            "encoder only, tiles/s": f"{bundle.encoder_only_tiles_per_s:.1f}",
            "end to end, tiles/s": f"{bundle.end_to_end_tiles_per_s:.1f}",
            "end to end / encoder only": interval_text(bundle.end_to_end_share, ".2f", "x"),
        }
        for stage in ("read", "decode", "resample", "inference", "write", "waiting"):
            seconds = getattr(bundle.stages, f"{stage}_s")
            figures[f"{stage}, ms a tile"] = "in decode" if seconds is None else f"{1e3 * seconds / done:.2f}"
        figures["one more decode thread"] = interval_text(bundle.one_more_thread, ".2f", "x")
        figures["one more stream"] = interval_text(bundle.one_more_stream, ".2f", "x")
        figures["over that program"] = interval_text(bundle.over_rival, ".2f", "x")
        for heading, cell in figures.items():
            cells.setdefault(heading, []).append(cell)
    return Rows(title="On the slide", headings=tuple(cells), rows=tuple(zip(*cells.values(), strict=True)))
