"""How fast tiles come out of slides: by compression and decode threads, from a disk and over a slow share.

The encoder costs nothing, or takes its time without using the processor, as a GPU does; what is read is drawn:

    python tools/timing/read_throughput.py --side 8192

A share is simulated where our own reader asks the file system: each request waits, and all of them share a bandwidth.
"""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter, validators
from numpy.typing import NDArray

from atlas_edge.cli import make_app, run_app
from atlas_edge.embed.pipeline import StageClock, embedded
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import RuntimeMissing
from atlas_edge.slides import TileReader, open_slide, plan_grid
from atlas_edge.slides.synthetic import make_slide
from atlas_edge.spec import EncoderSpec
from atlas_edge.system import hardware

_FORMS = {"JPEG": "jpeg", "JPEG 2000": "jpeg2000", "uncompressed": None}
_TILE_PX, _BATCH, _MPP = 224, 64, 0.5
_TURNS = 5
_BATCHES_ALONE = 40
_WORKERS: tuple[int | None, ...] = (1, 2, 4, None)

app = make_app("read_throughput", __doc__ or "")


class PacedEncoder:
    """Gives zeros, after as long as an encoder of this rate would take; at once for an infinite rate.

    Args:
        tiles_per_s: Its rate.
    """

    runtime = "none"
    capabilities = Capabilities()
    spec = EncoderSpec(
        name="paced", architecture="none", embed_dim=8, tile_px=_TILE_PX, mpp=_MPP, mean=(0, 0, 0), std=(1, 1, 1),
        pooling="avg",
    )  # fmt: skip

    def __init__(self, tiles_per_s: float = float("inf")) -> None:
        self._tiles_per_s = tiles_per_s

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        time.sleep(len(tiles) / self._tiles_per_s)
        return np.zeros((len(tiles), self.spec.embed_dim), np.float32)

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`."""
        raise NotImplementedError

    def close(self) -> None:
        """See `Encoder.close`."""


@app.default
def read_throughput(
    *,
    side: int = 8192,
    form: tuple[str, ...] = tuple(_FORMS),
    share_mb_s: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 20.0,
    share_ms: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 20.0,
) -> None:
    """Draw a slide, write it in each form, and print the table.

    Args:
        side: Pixels of the slide's side.
        form: JPEG, JPEG 2000, uncompressed; all of them when left out. An encoder takes turns with the first.
        share_mb_s: Bandwidth of the share, MB/s.
        share_ms: What each request to it waits, milliseconds.
    """
    if not hasattr(os, "pread"):
        raise RuntimeMissing("a share can be simulated on Linux and macOS only", hint="run it there")
    print(f"{hardware.cpu().name}, {hardware.usable_cores()} cores; {side} x {side} px, tiles of {_TILE_PX} px\n")
    far_away = f"over a share of {share_mb_s:g} MB/s, {share_ms:g} ms: 1 thread"
    print(f"| form | MB | 1, 2, 4 threads | chosen | {far_away} | chosen |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        forms = written(Path(folder), side, form)
        for name, path in forms.items():
            local = [tiles_per_s(path, PacedEncoder(), threads) for threads in _WORKERS]
            with slow_share(share_mb_s, share_ms):
                far = [tiles_per_s(path, PacedEncoder(), threads) for threads in (1, None)]
            few = ", ".join(f"{rate:.0f}" for rate in local[:-1])
            size = path.stat().st_size / 1e6
            print(f"| {name} | {size:.0f} | {few} | {local[-1]:.0f} | {far[0]:.0f} | {far[1]:.0f} |", flush=True)
        print(f"\n| {form[0]}, with an encoder of | reading alone | inference alone | both, over the slower one |")
        print("|---|---:|---:|---:|")
        for place, share in (("the disk", None), ("the share", (share_mb_s, share_ms))):
            for factor in (0.5, 1.0, 2.0):
                print(_both(forms[form[0]], place, share, factor), flush=True)


def _both(path: Path, place: str, share: tuple[float, float] | None, factor: float) -> str:
    """A row: reading and an encoder of so many times its rate, together; the median of some turns."""
    turns = []
    with slow_share(*share) if share else nullcontext():
        for _ in range(_TURNS):
            reading = tiles_per_s(path, PacedEncoder(), None)
            inference = _inference_alone(PacedEncoder(factor * reading))
            both = tiles_per_s(path, PacedEncoder(factor * reading), None)
            turns.append((both / min(reading, inference), reading, inference))
    ratio, reading, inference = (statistics.median(column) for column in zip(*turns, strict=True))
    return f"| {factor:g} times what {place} gives | {reading:.0f} | {inference:.0f} | {ratio:.2f} |"


def _inference_alone(encoder: PacedEncoder) -> float:
    """Tiles a second of an encoder whose tiles are there: it sleeps a little longer than it is told to."""
    tiles = np.zeros((_BATCH, _TILE_PX, _TILE_PX, 3), np.uint8)
    begun = time.perf_counter()
    for _ in range(_BATCHES_ALONE):
        encoder.encode(tiles)
    return _BATCHES_ALONE * _BATCH / (time.perf_counter() - begun)


def written(folder: Path, side: int, forms: Sequence[str] = tuple(_FORMS)) -> dict[str, Path]:
    """Files of one drawn slide, by the name of their form."""
    import tifffile

    drawn = make_slide(folder / "drawn.tif", side, side).path
    with closing(open_slide(drawn)) as slide:
        pixels = slide.read(0, 0, 0, side, side)
    paths = {}
    for name in forms:
        compression = _FORMS[name]
        paths[name] = folder / f"{compression}.ome.tif"
        tifffile.imwrite(
            paths[name], pixels, tile=(256, 256), photometric="rgb", compression=compression,
            metadata={"axes": "YXS", "PhysicalSizeX": _MPP, "PhysicalSizeY": _MPP},
        )  # fmt: skip
    return paths


def tiles_per_s(path: Path, encoder: PacedEncoder, threads: int | None) -> float:
    """What comes out of a slide through an encoder."""
    with closing(open_slide(path)) as slide:
        reader = TileReader(slide, plan_grid(slide, None, tile_px=_TILE_PX, mpp=_MPP))
        begun = time.perf_counter()
        batches = embedded(reader, [encoder], StageClock(), firsts=[0], threads=threads, batch=_BATCH)
        with closing(batches):
            tiles = sum(len(batch.features) for batch in batches)
        return tiles / (time.perf_counter() - begun)


@contextmanager
def slow_share(mb_s: float, ms: float) -> Iterator[None]:
    """Have every request of our own reader wait as one to a share would.

    Args:
        mb_s: Bandwidth of all requests together, MB/s.
        ms: What each of them waits besides, side by side.
    """
    genuine, lock, free_at = os.pread, threading.Lock(), 0.0

    def pread(file: int, length: int, offset: int, /) -> bytes:
        nonlocal free_at
        with lock:
            now = time.perf_counter()
            free_at = max(free_at, now) + length / (1e6 * mb_s)
            wait = free_at - now + ms / 1e3
        time.sleep(wait)
        return genuine(file, length, offset)

    os.pread = pread
    try:
        yield
    finally:
        os.pread = genuine


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
