"""What a slide is: a pyramid of RGB levels at a known µm per pixel."""

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError

_BLOCK_PX = 2048
_SMALLEST_BLOCK_PX = 128
_SAME_SHAPE = 0.05
_MOST_FAULTS = (
    100  # for each block that can be read: some readers take long over a fault, and forged sizes have millions
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of the pyramid; `downsample_*` are level-0 pixels for each of its own."""

    width: int
    height: int
    downsample_x: float
    downsample_y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A look at the whole slide.

    Attributes:
        pixels: `(h, w, 3)` uint8 RGB; white where there are none.
        damaged: `(h, w)`: where the file cannot be read.
        unscanned: `(h, w)`: where the scanner did not look, or hardly.
    """

    pixels: NDArray[np.uint8]
    damaged: NDArray[np.bool_]
    unscanned: NDArray[np.bool_]


class Slide(ABC):
    """A slide that is open for reading from several threads.

    Attributes:
        path: File.
        vendor: As the reader calls it: `aperio`, `hamamatsu`, `generic-tiff`, `ome-tiff`.
        stated_mpp: µm per pixel of level 0 across and downwards, as the file says them.
        mpp_x: µm per pixel of level 0.
        mpp_y: The same, downwards.
        mpp_source: Who said so: `slide`, `--mpp`, or `--slides`.
        levels: From the finest to the coarsest.
        bounds: Left, top, width and height of what was scanned, level-0 pixels; None where the file does not say it.
            QuPath counts its coordinates from there.
        objective: Magnification of the scanner's objective.
        icc_profile: ICC profile as it lies in the file. Pixels are read as they are stored: `to_srgb` applies it.
        icc_sha256: Of the ICC profile.
        quickhash: OpenSlide's hash of the slide's header and its coarsest level.
    """

    path: Path
    vendor: str
    stated_mpp: tuple[float | None, float | None]
    mpp_x: float
    mpp_y: float
    mpp_source: str
    levels: tuple[Level, ...]
    bounds: tuple[int, int, int, int] | None = None
    objective: float | None = None
    icc_profile: bytes | None = None
    icc_sha256: str | None = None
    quickhash: str | None = None

    @cached_property
    def unusable_levels(self) -> set[int]:
        """Levels of another shape than level 0, and those that turned out to be damaged all over."""
        return set()

    @property
    def name(self) -> str:
        """File name without its last suffix."""
        return self.path.stem

    @abstractmethod
    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region, `(height, width, 3)` uint8 RGB; what the scanner left out is white.

        Args:
            level: Index into `levels`.
            left: Pixels of that level, as the rest.
            top: See `left`.
            width: See `left`.
            height: See `left`.

        Raises:
            InputError: The file is damaged there.
        """

    def read_alone(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read as `read` does, undisturbed by a fault that another thread met."""
        return self.read(level, left, top, width, height)

    def read_with_gaps(
        self, level: int, left: int, top: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read as `read` does, and say where the scanner did not look, `(height, width)`."""
        return self.read(level, left, top, width, height), np.zeros((height, width), dtype=bool)

    def reads_alike(self, level: int) -> bool:
        """Whether a pixel of a level is the same in whatever region it is read."""
        return True

    @property
    def file_s(self) -> float | None:
        """Seconds spent so far in reading the file's bytes; None where the reader does not tell."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def thumbnail(self, mpp: float) -> NDArray[np.uint8]:
        """The whole slide at about `mpp` µm per pixel (never finer than level 0), `(h, w, 3)` uint8 RGB."""
        return self.survey(mpp).pixels

    def survey(self, mpp: float) -> Survey:
        """Look at the whole slide at `mpp` µm per pixel or somewhat less (never finer than level 0).

        Read in blocks, so that a slide without a pyramid needs no more memory than one with it. Where a level is
        damaged the next finer one is looked at; a level that cannot be read anywhere is not used again.
        """
        level = self.level_for(mpp)
        found = self._survey_level(level, mpp)
        while found.damaged.any() and level > 0:
            if found.damaged.all():
                self.unusable_levels.add(level)
            level -= 1
            finer = self._survey_level(level, mpp)
            if found.damaged.all():
                found = finer
                continue
            size = found.damaged.shape[::-1]
            pixels = np.asarray(Image.fromarray(finer.pixels).resize(size, Image.Resampling.BOX))
            damaged, unscanned = (
                np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 0
                for mask in (finer.damaged, finer.unscanned)
            )
            found = Survey(
                pixels=np.where(found.damaged[..., None], pixels, found.pixels),
                damaged=found.damaged & damaged,
                unscanned=np.where(found.damaged, unscanned, found.unscanned),
            )
        return found

    def level_for(self, mpp: float, *, tolerance: float = 0.01) -> int:
        """The coarsest level that is at most `mpp` (within `tolerance`), level 0 where none is."""
        fine = [
            index
            for index, level in enumerate(self.levels)
            if index not in self.unusable_levels
            and max(self.mpp_x * level.downsample_x, self.mpp_y * level.downsample_y) <= mpp * (1 + tolerance)
        ]
        return max(fine, default=0)

    def _survey_level(self, level: int, mpp: float) -> Survey:
        size = self.levels[level]
        shrink = max(int(mpp / (self.mpp_x * size.downsample_x) + 1e-6), 1)
        pixels = np.full((-(-size.height // shrink), -(-size.width // shrink), 3), 255, dtype=np.uint8)
        damaged, unscanned = np.zeros(pixels.shape[:2], dtype=bool), np.zeros(pixels.shape[:2], dtype=bool)
        step = max(_BLOCK_PX // shrink, 1) * shrink
        # Whole blocks first, their parts later: by then it is known how much of the level can be read.
        blocks = deque((left, top, step) for top in range(0, size.height, step) for left in range(0, size.width, step))
        good = bad = 0
        while blocks:
            left, top, side = blocks.popleft()
            width, height = min(side, size.width - left), min(side, size.height - top)
            place = np.s_[top // shrink : -(-(top + height) // shrink), left // shrink : -(-(left + width) // shrink)]
            half = max(side // 2 // shrink, 1) * shrink
            try:
                if bad >= _MOST_FAULTS * (good + 2):
                    raise InputError(f"{self.path}: level {level} is damaged")
                block, gaps = self.read_with_gaps(level, left, top, width, height)
            except InputError:
                bad += 1
                if half < _SMALLEST_BLOCK_PX or half >= side:
                    damaged[place] = True
                    continue
                blocks += [
                    (left + right, top + down, half)
                    for right in range(0, width, half)
                    for down in range(0, height, half)
                ]
                continue
            good += 1
            pixels[place] = np.asarray(Image.fromarray(block).reduce(shrink))
            if gaps.any():
                unscanned[place] = np.asarray(Image.fromarray(gaps.astype(np.uint8) * 255).reduce(shrink)) > 0
        return Survey(pixels=pixels, damaged=damaged, unscanned=unscanned)


def is_same_shape(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a level can show the same as a finer one; small ones are rounded to whole pixels.

    Args:
        full: Width and height of the finer one.
        size: Of the level.
    """
    across, down = full[0] / size[0], full[1] / size[1]
    return abs(across - down) <= max(_SAME_SHAPE, 2 / size[0], 2 / size[1]) * across


def sha256_of(profile: bytes | None) -> str | None:
    """SHA-256 of an ICC profile, None where there is none."""
    return hashlib.sha256(profile).hexdigest() if profile else None
