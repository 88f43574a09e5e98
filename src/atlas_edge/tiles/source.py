"""What a tile source is: records that stream without pixels, and pixels decoded one tile at a time."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.options import TileFit

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRecord:
    """What is known of a tile before it is decoded.

    Attributes:
        id: Unique in its source, stable between runs.
        label: Biological class, where known.
        group: Slide or patient: the unit of resampling, and what must not straddle calibration and evaluation.
        split: `train`, `val` or `test`, where the source says.
        scanner: Scanner model, where known.
        stain: Staining protocol or stain vector, where known.
        center: Medical centre, where known.
        position: Identifies the same physical place across scans (PLISM's registered tiles), where known.
        mpp: µm per pixel, where known.
        locator: The source's own handle on the pixels.
    """

    id: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    scanner: str | None = None
    stain: str | None = None
    center: str | None = None
    position: str | None = None
    mpp: float | None = None
    locator: tuple[str | int, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBatch:
    """Decoded tiles, `(B, H, W, 3)` uint8, with their records in the same order."""

    records: tuple[TileRecord, ...]
    pixels: NDArray[np.uint8]


class TileSource(ABC):
    """A set of tiles on disk (or procedural) that is never held in memory as a whole.

    Attributes:
        name: Short name for reports.
        kind: `class folders`, `flat folder`, `pack`, `webdataset`, `parquet`, `hdf5`, `slide`, `slides` or `synthetic`.
        split: The split it is narrowed to, or None for all tiles.
        synthetic: True for procedural tiles; reports must then say so.
        licence: As stated by the source's own README or metadata, or None.
        mpp_range: Finest and coarsest µm per pixel, where its tiles are at all between them.
    """

    name: str
    kind: str
    split: str | None = None
    synthetic: bool = False
    licence: str | None = None
    mpp_range: tuple[float, float] | None = None

    @abstractmethod
    def records(self) -> Iterator[TileRecord]:
        """Stream the records in a fixed order, decoding nothing."""

    def listing(self) -> Sequence[TileRecord]:
        """All records, by number; a source that can tell any of them holds no list."""
        return tuple(self.records())

    @abstractmethod
    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Decode one tile to `(H, W, 3)` uint8 RGB.

        Raises:
            InputError: The tile is missing, truncated or not an RGB image.
        """

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The file (or generator) that holds a tile's pixels, and where in it: the same however a set is opened."""
        return self.name, record.id

    @abstractmethod
    def splits(self) -> frozenset[str]:
        """Names of the splits that the source knows; empty where it has none."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over what identifies the tiles (ids and stored hashes, or the generator's seed): provenance."""

    def __len__(self) -> int:
        return sum(1 for _ in self.records())

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Close what is open; reading again opens it again."""


def batches(
    source: TileSource,
    records: Iterable[TileRecord] | None = None,
    *,
    size: int,
    tile_px: int | None = None,
    fit: TileFit = "exact",
    threads: int = 0,
) -> Iterator[TileBatch]:
    """Decode tiles in order into batches of `size` (the last one may be smaller).

    Args:
        source: Where the tiles are.
        records: Which tiles; all when None.
        size: Tiles a batch.
        tile_px: Side that the encoder takes; None leaves the tiles as they are (all must then be alike).
        fit: What to do with a tile of another size; see `fit_tile`.
        threads: Decode ahead in so many threads, at most two batches; 0 decodes when a batch is asked for.

    Raises:
        InputError: A tile cannot be read, or has another size while `fit` is `exact`, or tiles differ in size.
        UsageError: `size` is not positive.
    """
    if size < 1:
        raise UsageError(f"batch size is {size}, expected at least 1")

    def decode(record: TileRecord) -> tuple[TileRecord, NDArray[np.uint8]]:
        tile = source.read(record)
        return record, tile if tile_px is None else fit_tile(tile, tile_px, fit, name=record.id)

    wanted = source.records() if records is None else records
    decoded = map(decode, wanted) if threads < 1 else ahead(decode, wanted, threads=threads, most=2 * size)
    held: list[TileRecord] = []
    pixels: list[NDArray[np.uint8]] = []
    for record, tile in decoded:
        if pixels and tile.shape != pixels[0].shape:
            raise InputError(
                f"tile {record.id} is {tile.shape[1]} x {tile.shape[0]} px, the tiles before it {pixels[0].shape[1]} x "
                f"{pixels[0].shape[0]}",
                hint="use --tile-fit crop or --tile-fit resize",
            )
        held.append(record)
        pixels.append(tile)
        if len(held) == size:
            yield TileBatch(records=tuple(held), pixels=np.stack(pixels))
            held, pixels = [], []
    if held:
        yield TileBatch(records=tuple(held), pixels=np.stack(pixels))


def fit_tile(tile: NDArray[np.uint8], tile_px: int, fit: TileFit, *, name: str) -> NDArray[np.uint8]:
    """Bring a tile to `(tile_px, tile_px, 3)`.

    `exact` refuses another size, `crop` takes the centre (keeps mpp), `resize` resamples bicubically (changes mpp).

    Raises:
        InputError: The size differs under `exact`, or the tile is smaller than `tile_px` under `crop`.
        UsageError: `fit` is none of the three.
    """
    height, width = tile.shape[:2]
    if (height, width) == (tile_px, tile_px):
        return tile
    if fit == "crop":
        if min(height, width) < tile_px:
            raise InputError(
                f"tile {name} is {width} x {height} px, smaller than the encoder's {tile_px}",
                hint="use --tile-fit resize",
            )
        top, left = (height - tile_px) // 2, (width - tile_px) // 2
        return tile[top : top + tile_px, left : left + tile_px]
    if fit == "resize":
        from PIL import Image

        resized = Image.fromarray(tile).resize((tile_px, tile_px), Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.uint8)
    if fit == "exact":
        raise InputError(
            f"tile {name} is {width} x {height} px, the encoder takes {tile_px} x {tile_px}",
            hint="use --tile-fit crop (keeps µm per pixel) or --tile-fit resize",
        )
    raise UsageError(f"unknown tile fit {fit!r}", hint="choose exact, crop or resize")


def ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, most: int) -> Generator[R, None, None]:
    """`map` in threads, in order, with at most `most` results waiting; they end when it is closed.

    Args:
        function: May run in several threads, as `TileSource.read` may.
        items: What it is called with.
        threads: How many.
        most: Results that wait to be taken.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
