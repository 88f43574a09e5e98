"""What embedding a slide at two scales at once would save of reading it twice: by turns, with an encoder that is free.

    python tools/timing/two_scales.py SLIDE … --mpp 0.5 --mpp 1

Apart, each scale opens the slide for itself. Together, both go down the slide side by side, so that what one has
decoded of a level is still there for the other. Told is the processor's time, which other programs hardly change.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from atlas_edge.cli import make_app, run_app
from atlas_edge.embed.pipeline import StageClock, embedded
from atlas_edge.slides import Slide, TileReader, open_slide, plan_grid
from read_throughput import PacedEncoder

_TILE_PX, _BATCH = 224, 64

app = make_app("two_scales", __doc__ or "")


@app.default
def two_scales(*slides: Path, mpp: Sequence[float] = (0.5, 1.0), rounds: int = 5) -> None:
    """Read slides both ways and print the table.

    Args:
        slides: Slides.
        mpp: µm per pixel of tiles, one after the other.
        rounds: Turns; the medians are told.
    """
    print("| slide | levels | tiles | apart, ms | together, ms | apart over together |\n|---|---|---:|---:|---:|---:|")
    for path in slides:
        turns = [(_cost(path, mpp, apart=True), _cost(path, mpp, apart=False)) for _ in range(rounds)]
        apart, together = (statistics.median(column) for column in zip(*turns, strict=True))
        with closing(open_slide(path)) as slide:
            readers = [_reader(slide, scale) for scale in mpp]
            levels = ", ".join(str(reader.grid.level) for reader in readers)
            tiles = sum(len(reader.grid.coords) for reader in readers)
        print(
            f"| {path.name} | {levels} | {tiles} | {1e3 * apart:.0f} | {1e3 * together:.0f} | {apart / together:.2f} |"
        )


def _cost(path: Path, scales: Sequence[float], *, apart: bool) -> float:
    """Seconds of the processor."""
    begun = time.process_time()
    for group in [[scale] for scale in scales] if apart else [list(scales)]:
        with closing(open_slide(path)) as slide:
            _side_by_side([_reader(slide, scale) for scale in group])
    return time.process_time() - begun


def _side_by_side(readers: list[TileReader]) -> None:
    """Read all tiles, always of the grid that is not as far down."""
    with ExitStack() as opened:
        batches = {
            reader: opened.enter_context(
                closing(embedded(reader, [PacedEncoder()], StageClock(), firsts=[0], threads=1, batch=_BATCH))
            )
            for reader in readers
        }
        ends = {reader: 0.0 for reader in readers}
        while ends:
            reader = min(ends, key=ends.__getitem__)
            done = next(batches[reader], None)
            if done is None:
                del ends[reader]
            else:
                last = done.start + len(done.features) - 1
                ends[reader] = float(reader.grid.coords[last, 1] + reader.grid.size_y)


def _reader(slide: Slide, mpp: float) -> TileReader:
    return TileReader(slide, plan_grid(slide, None, tile_px=_TILE_PX, mpp=mpp, rim=True))


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
