"""The embedded sample: procedural H&E-like tiles, the same everywhere, always called synthetic."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.tiles.source import TileRecord, TileSource
from atlas_edge.tiles.synthetic.stain import SIMULATED_SCANNERS, SIMULATED_STAINS, Scanner, Stain, render
from atlas_edge.tiles.synthetic.tissue import CLASSES, draw_tissue

DEFAULT_COUNT = 512
MPP = 0.5

_VERSION = 1  # raise it when a tile's pixels change
_SLIDE_TILES = 16
_BLOCK = 2 * _SLIDE_TILES  # one slide of train and one of test, interleaved
_SPLITS = ("train", "test")


class SyntheticTiles(TileSource):
    """`count` tiles of six tissue classes on synthetic slides of 16 tiles.

    Tiles come in blocks of 32: one train slide and one test slide, interleaved, so that any count holds both splits and
    `synthetic:64` is the beginning of `synthetic:512`. Scanner and stain change from slide to slide; twelve blocks hold
    every pair of them in both splits. A tile depends on its seed and index only, whatever is read before it.
    """

    kind = "synthetic"
    synthetic = True
    licence = "Apache-2.0"

    def __init__(
        self, count: int = DEFAULT_COUNT, seed: int = 0, *, split: str | None = None, tile_px: int = 224
    ) -> None:
        if count < 1 or seed < 0:
            raise UsageError(
                f"synthetic:{count}:{seed} cannot be, expected at least 1 tile and a seed of at least 0",
                hint=f"use synthetic:{DEFAULT_COUNT}:0",
            )
        self.name = f"synthetic:{count}:{seed}"
        self.split = split
        self.count = count
        self.seed = seed
        self.tile_px = tile_px

    def records(self) -> Iterator[TileRecord]:
        """By index: train and test tiles in turn."""
        first, step = (0, 1) if self.split is None else (_SPLITS.index(self.split), 2)
        return (self._record(index) for index in range(first, self.count, step))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Draw one tile; see `TileSource.read`."""
        index = int(record.locator[0])
        if not 0 <= index < self.count:
            raise InputError(f"tile {record.id} is none of {self.name}")
        return _drawn(self.seed, index, str(record.label), self.tile_px).copy()

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The seed and the index: however many tiles there are, the first ones are the same."""
        return f"synthetic {self.seed}", str(record.locator[0])

    def splits(self) -> frozenset[str]:
        """`train` and, from two tiles on, `test`."""
        return frozenset(_SPLITS[: min(self.count, 2)])

    def fingerprint(self) -> str:
        """SHA-256 over generator version, count, seed, split and tile size."""
        identity = f"atlas-edge synthetic tiles {_VERSION} {self.count} {self.seed} {self.split} {self.tile_px}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def __len__(self) -> int:
        if self.split is None:
            return self.count
        return (self.count + 1 - _SPLITS.index(self.split)) // 2

    def _record(self, index: int) -> TileRecord:
        scanner, stain = _appearance(index)
        slide = _slide(index)
        labels = tuple(CLASSES)
        return TileRecord(
            id=f"synthetic-{self.seed}-{index:07d}",
            label=labels[(index % _BLOCK // 2 + slide) % len(labels)],
            group=f"synthetic-slide-{slide:05d}",
            split=_SPLITS[index % 2],
            scanner=scanner.name,
            stain=stain.name,
            center="synthetic",
            mpp=MPP,
            locator=(index,),
        )


# An export reads most tiles two or three times: to choose some, to calibrate, to fit probes.
@lru_cache(maxsize=DEFAULT_COUNT)
def _drawn(seed: int, index: int, label: str, tile_px: int) -> NDArray[np.uint8]:
    scanner, stain = _appearance(index)
    rng = np.random.default_rng([_VERSION, seed, index])
    slide = np.random.default_rng([_VERSION, seed, _slide(index), 1])
    haematoxylin, eosin, noise = draw_tissue(label, tile_px, rng)
    # Section thickness and staining time differ between slides, a little within one.
    haematoxylin *= np.float32(slide.uniform(0.85, 1.2) * rng.uniform(0.97, 1.03))
    eosin *= np.float32(slide.uniform(0.85, 1.25) * rng.uniform(0.97, 1.03))
    return render(haematoxylin, eosin, stain=stain, scanner=scanner, noise=noise)


def _slide(index: int) -> int:
    return index // _BLOCK * 2 + index % 2


def _appearance(index: int) -> tuple[Scanner, Stain]:
    block, odd = index // _BLOCK, index % 2
    # Four scanners and three stains: the Chinese remainder theorem walks through all twelve pairs.
    scanner, stain = (block + 2 * odd) % len(SIMULATED_SCANNERS), (block + odd) % len(SIMULATED_STAINS)
    return SIMULATED_SCANNERS[scanner], SIMULATED_STAINS[stain]
