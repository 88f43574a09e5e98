"""Tiles of a grid as pixels, many at a time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.slides.grid import TileGrid
from atlas_edge.slides.slide import Slide

_RUN = 8  # neighbours read as one region: fewer calls, and a scanner's tile that two of ours share is decoded once


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTiles:
    """Tiles as read.

    Attributes:
        pixels: `(B, tile_px, tile_px, 3)` uint8; unreadable ones are white.
        unreadable: Index in the batch -> reason.
        read_s: Seconds for reading and decoding regions.
        resample_s: Seconds for cutting and resampling.
    """

    pixels: NDArray[np.uint8]
    unreadable: dict[int, str]
    read_s: float
    resample_s: float


class TileReader:
    """Reads tiles of a grid; may be used from several threads."""

    def __init__(self, slide: Slide, grid: TileGrid) -> None:
        self.slide = slide
        self.grid = grid
        size = slide.levels[grid.level]
        self._down = (size.downsample_x, size.downsample_y)
        self._limits = (size.width, size.height)
        self._extent = (grid.tile_px * grid.scale_x, grid.tile_px * grid.scale_y)
        self._as_is = grid.scale_x == 1 and grid.scale_y == 1

    def read(self, coords: NDArray[np.int64]) -> ReadTiles:
        """Read tiles by their coordinates, `(B, 2)`; those that cannot be read are listed, not raised."""
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
        return ReadTiles(pixels=pixels, unreadable=unreadable, read_s=read_s, resample_s=resample_s)

    def _runs(self, coords: NDArray[np.int64]) -> Iterator[range]:
        start = 0
        for index in range(1, len(coords) + 1):
            if index < len(coords) and index - start < _RUN:
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
        x0, y0 = int(lefts[0]), int(top)
        x1 = min(-int(-(lefts[-1] + self._extent[0]) // 1), self._limits[0])
        y1 = min(-int(-(top + self._extent[1]) // 1), self._limits[1])
        if self._as_is:
            x0, y0 = round(float(lefts[0])), round(top)
            x1, y1 = round(float(lefts[-1])) + self.grid.tile_px, y0 + self.grid.tile_px
        begun = time.perf_counter()
        reading = self.slide.read_alone if alone else self.slide.read
        region = reading(self.grid.level, x0, y0, x1 - x0, y1 - y0)
        ended = time.perf_counter()
        if self._as_is:
            for index, left in zip(run, lefts, strict=True):
                x = round(float(left)) - x0
                pixels[index] = region[:, x : x + self.grid.tile_px]
        else:
            self._resample(region, lefts - x0, top - y0, run, pixels)
        return ended - begun, time.perf_counter() - ended

    def _resample(
        self, region: NDArray[np.uint8], lefts: NDArray[np.float64], top: float, run: range, pixels: NDArray[np.uint8]
    ) -> None:
        image, side = Image.fromarray(region), self.grid.tile_px
        height, width = region.shape[:2]
        for index, left in zip(run, lefts, strict=True):
            # Rounding may reach past the region by a fraction of a pixel.
            box = (left, top, min(left + self._extent[0], width), min(top + self._extent[1], height))
            pixels[index] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
