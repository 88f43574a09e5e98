"""Tiles of a grid as pixels, many at a time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.slides.grid import TileGrid
from atlas_edge.slides.slide import Slide

_RUN = 8  # neighbours read as one region: fewer calls, and a scanner's tile that two of ours share is decoded once
_BICUBIC_SUPPORT = 2  # pixels to either side that Pillow's filter looks at, times the scale where it shrinks


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTiles:
    """Tiles as read.

    Attributes:
        pixels: `(B, tile_px, tile_px, 3)` uint8; unreadable ones are white.
        unreadable: Index in the batch -> reason.
        read_s: Seconds for reading and decoding regions.
        resample_s: Seconds for cutting, resampling and other colours.
    """

    pixels: NDArray[np.uint8]
    unreadable: dict[int, str]
    read_s: float
    resample_s: float


class TileReader:
    """Reads tiles of a grid; may be used from several threads.

    A tile's pixels depend on its coordinates only: not on its neighbours, nor on how many are read at once. Where it
    reaches past the slide's right or lower rim it is white.

    Args:
        slide: Open.
        grid: Its tiles.
        colours: Turns the pixels of all tiles into others, as `to_srgb` does.
    """

    def __init__(
        self, slide: Slide, grid: TileGrid, colours: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    ) -> None:
        self.slide = slide
        self.grid = grid
        self._colours = colours
        size = slide.levels[grid.level]
        self._down = (size.downsample_x, size.downsample_y)
        self._limits = (size.width, size.height)
        self._extent = (grid.tile_px * grid.scale_x, grid.tile_px * grid.scale_y)
        self._as_is = grid.scale_x == 1 and grid.scale_y == 1
        self._margins = tuple(math.ceil(_BICUBIC_SUPPORT * max(scale, 1)) for scale in (grid.scale_x, grid.scale_y))
        self._longest_run = _RUN if slide.reads_alike(grid.level) else 1

    def read(self, coords: NDArray[np.int64]) -> ReadTiles:
        """Read tiles by their coordinates, `(B, 2)`; those that cannot be read are listed, not raised.

        What fails with its neighbours is read once more alone: a fault of the network may be over by then.
        """
        side = self.grid.tile_px
        pixels = np.full((len(coords), side, side, 3), 255, dtype=np.uint8)
        unreadable: dict[int, str] = {}
        read_s = resample_s = 0.0
        for run in self._runs(coords):
            try:
                seconds = self._read_run(coords, run, pixels, alone=False)
            except InputError:
                seconds = (0.0, 0.0)
                for index in run:
                    try:
                        self._read_run(coords, range(index, index + 1), pixels, alone=True)
                    except InputError as error:
                        unreadable[index] = error.message
            read_s, resample_s = read_s + seconds[0], resample_s + seconds[1]
        if self._colours is not None:
            begun = time.perf_counter()
            pixels = self._colours(pixels)
            resample_s += time.perf_counter() - begun
        return ReadTiles(pixels=pixels, unreadable=unreadable, read_s=read_s, resample_s=resample_s)

    def _runs(self, coords: NDArray[np.int64]) -> Iterator[range]:
        start = 0
        for index in range(1, len(coords) + 1):
            if index < len(coords) and index - start < self._longest_run:
                step, down = coords[index] - coords[index - 1]
                if down == 0 and 0 < step <= self.grid.size_x + 1:
                    continue
            yield range(start, index)
            start = index

    def _read_run(
        self, coords: NDArray[np.int64], run: range, pixels: NDArray[np.uint8], *, alone: bool
    ) -> tuple[float, float]:
        lefts = coords[run.start : run.stop, 0] / self._down[0]
        top = float(coords[run.start, 1]) / self._down[1]
        spans = [self._span(float(left), 0) for left in lefts]
        y0, y1 = self._span(top, 1)
        x0, x1 = spans[0][0], spans[-1][1]
        begun = time.perf_counter()
        reading = self.slide.read_alone if alone else self.slide.read
        region = reading(self.grid.level, x0, y0, x1 - x0, y1 - y0)
        ended = time.perf_counter()
        for index, left, (first, last) in zip(run, lefts, spans, strict=True):
            window = region[:, first - x0 : last - x0]
            pixels[index] = window if self._as_is else self._resampled(window, float(left) - first, top - y0)
        return ended - begun, time.perf_counter() - ended

    def _span(self, start: float, axis: int) -> tuple[int, int]:
        """First and last pixel of the level that a tile needs, along one axis."""
        if self._as_is:
            return round(start), round(start) + self.grid.tile_px
        limit, end = self._limits[axis], math.ceil(start + self._extent[axis])
        # The last whole tile may reach past the rim by a fraction of a pixel, since coordinates are rounded.
        past = end if end > limit + 1 else min(end + self._margins[axis], limit)
        return max(math.floor(start) - self._margins[axis], 0), past

    def _resampled(self, window: NDArray[np.uint8], left: float, top: float) -> NDArray[np.uint8]:
        height, width = window.shape[:2]
        box = (left, top, min(left + self._extent[0], width), min(top + self._extent[1], height))
        side = (self.grid.tile_px, self.grid.tile_px)
        return np.asarray(Image.fromarray(window).resize(side, Image.Resampling.BICUBIC, box=box))
