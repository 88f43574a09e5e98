"""Where tiles lie on a slide."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides.slide import Slide
from atlas_edge.slides.tissue.find import TissueMask

SAME_SCALE = 0.01
"""A level this close to the wanted µm per pixel is used as it is: 0.499 for 0.5 would only be blurred."""

_LOGGER = logging.getLogger(__name__)
_MOST_UPSAMPLING = 1.1
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedTiles:
    """Tiles with tissue that are not embedded.

    Attributes:
        coords: `(M, 2)` int64, as those of `TileGrid`.
        by: `(M,)` int64, of each the index of the grid's tile that stands for it.
    """

    coords: NDArray[np.int64]
    by: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """A grid of tiles.

    Attributes:
        level: Level to read from.
        tile_px: Side of a tile as the encoder sees it.
        mpp: µm per pixel of the tiles as the encoder sees them.
        scale_x: Level pixels for each tile pixel; exactly 1 where nothing is resampled.
        scale_y: The same, downwards.
        size_x: Level-0 pixels that a tile spans, across.
        size_y: The same, downwards.
        coords: `(N, 2)` int64, x and y of the top left corners in level-0 pixels, row by row.
        candidates: Tiles of the whole grid, with tissue or without.
        overlap: Pixels that a tile shares with each neighbour, as the encoder sees them.
        tissue_share: `(N,)` float32, tissue's share of each tile, 0-1; None where nobody looked for tissue.
        skipped: Tiles with tissue that the grid leaves out; None where it has all of them.
    """

    level: int
    tile_px: int
    mpp: float
    scale_x: float
    scale_y: float
    size_x: float
    size_y: float
    coords: NDArray[np.int64]
    candidates: int
    overlap: int = 0
    tissue_share: NDArray[np.float32] | None = None
    skipped: SkippedTiles | None = None

    @property
    def skipped_tiles(self) -> int:
        """How many tiles with tissue it leaves out."""
        return 0 if self.skipped is None else len(self.skipped.coords)


def plan_grid(
    slide: Slide,
    mask: TissueMask | None,
    *,
    tile_px: int,
    mpp: float,
    min_tissue: float = 0.1,
    rim: bool = False,
    overlap: int = 0,
) -> TileGrid:
    """Lay a grid over a slide and keep the tiles with tissue.

    Args:
        slide: The slide.
        mask: Where tissue is; when None all that was scanned counts as tissue.
        tile_px: Side of a tile as the encoder sees it.
        mpp: µm per pixel that the encoder wants.
        min_tissue: Least share of a tile that must be tissue, 0-1. What lies beyond the slide is none.
        rim: Take tiles that reach past the right and the lower rim, too; they are white there.
        overlap: Pixels that a tile shares with each neighbour, as the encoder sees them.

    Raises:
        InputError: The slide is coarser than the encoder wants by more than a tenth, or smaller than a tile. By less it
            is enlarged, and a warning says so.
        UsageError: Tiles would overlap wholly.
    """
    if not 0 <= overlap < tile_px:
        raise UsageError(f"--overlap {overlap}: tiles have {tile_px} px, expected less", hint="use half of it at most")
    scale = _scale(slide, mpp)
    size_x, size_y = scale.sizes(tile_px)
    count = _count_with_rim if rim else _count
    shared = overlap / tile_px
    step_x, step_y = size_x * (1 - shared), size_y * (1 - shared)
    columns = count((slide.levels[0].width - size_x * shared) / step_x)
    rows = count((slide.levels[0].height - size_y * shared) / step_y)
    if columns < 1 or rows < 1:
        raise InputError(
            f"{slide.path} is {slide.levels[0].width} x {slide.levels[0].height} px, smaller than one tile "
            f"({size_x:.0f} x {size_y:.0f} px at {scale.mpp:.3g} µm per pixel)"
        )
    lefts = np.arange(columns, dtype=np.float64) * step_x
    tops = np.arange(rows, dtype=np.float64) * step_y
    if mask is not None:
        share = _tissue_share(mask, lefts, tops, size_x, size_y)
    else:
        x, y, width, height = slide.bounds or (0, 0, slide.levels[0].width, slide.levels[0].height)
        share = np.outer(_overlap(tops, size_y, y, y + height), _overlap(lefts, size_x, x, x + width))
    row, column = np.nonzero(share >= max(min_tissue - _ROUNDING, _ROUNDING))
    coords = np.stack([np.rint(lefts[column]), np.rint(tops[row])], axis=1).astype(np.int64)
    share_of_tissue = None if mask is None else share[row, column].astype(np.float32)
    return scale.grid(tile_px, coords, candidates=rows * columns, overlap=overlap, tissue_share=share_of_tissue)


def tile_around(slide: Slide, x: float, y: float, *, tile_px: int, mpp: float) -> TileGrid:
    """A grid of one tile around a place; near the slide's rim it is moved inside as far as the slide goes.

    Args:
        slide: The slide.
        x: Centre, level-0 pixels.
        y: The same, downwards.
        tile_px: Side of the tile as the encoder sees it.
        mpp: µm per pixel of the tile.

    Raises:
        InputError: The slide is coarser than that by more than a tenth.
    """
    scale = _scale(slide, mpp)
    size_x, size_y = scale.sizes(tile_px)
    corner = [
        round(max(min(centre - size / 2, side - size), 0.0))
        for centre, size, side in ((x, size_x, slide.levels[0].width), (y, size_y, slide.levels[0].height))
    ]
    return scale.grid(tile_px, np.array([corner], dtype=np.int64), candidates=1)


def check_detail(slide: Slide, mpp: float) -> None:
    """Refuse a scale that a slide cannot give.

    Raises:
        InputError: The slide is coarser than `mpp` µm per pixel by more than a tenth.
    """
    if max(slide.mpp_x, slide.mpp_y) > mpp * _MOST_UPSAMPLING:
        raise InputError(
            f"{slide.path} has {slide.mpp_x:.3g} µm per pixel, the encoder wants {mpp:.3g}: detail cannot be invented",
            hint=f"add --tile-mpp {slide.mpp_x:.3g} to embed it as it is",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """How tiles are read at `mpp`: level, its pixels for each of a tile's, level 0's pixels for each of the level's."""

    level: int
    mpp: float
    x: float
    y: float
    down_x: float
    down_y: float

    def sizes(self, tile_px: int) -> tuple[float, float]:
        """Level-0 pixels that a tile spans, across and downwards."""
        return tile_px * self.x * self.down_x, tile_px * self.y * self.down_y

    def grid(self, tile_px: int, coords: NDArray[np.int64], **rest: Any) -> TileGrid:
        """Tiles of this scale at some corners."""
        size_x, size_y = self.sizes(tile_px)
        return TileGrid(
            level=self.level, tile_px=tile_px, mpp=self.mpp, scale_x=self.x, scale_y=self.y,
            size_x=size_x, size_y=size_y, coords=coords, **rest,
        )  # fmt: skip


def _scale(slide: Slide, mpp: float) -> _Scale:
    check_detail(slide, mpp)
    level = slide.level_for(mpp, tolerance=SAME_SCALE)
    down_x, down_y = slide.levels[level].downsample_x, slide.levels[level].downsample_y
    x, y = mpp / (slide.mpp_x * down_x), mpp / (slide.mpp_y * down_y)
    if abs(x - 1) <= SAME_SCALE and abs(y - 1) <= SAME_SCALE:
        x = y = 1.0
        mpp = slide.mpp_x * down_x
    elif min(x, y) < 1 - SAME_SCALE:
        _LOGGER.warning(
            "%s: %.3g µm per pixel, the encoder wants %.3g: tiles are enlarged, which blurs them",
            slide.path.name, max(slide.mpp_x, slide.mpp_y), mpp,
        )  # fmt: skip
    return _Scale(level=level, mpp=mpp, x=x, y=y, down_x=down_x, down_y=down_y)


def _count(sides: float) -> int:
    return int(sides + _ROUNDING)


def _count_with_rim(sides: float) -> int:
    return max(math.ceil(sides - _ROUNDING), 1)


def _overlap(starts: NDArray[Any], size: float, first: float, last: float) -> NDArray[np.float64]:
    """Share of each tile that lies between two level-0 pixels, along one axis."""
    inside = np.minimum(starts + size, last) - np.maximum(starts, first)
    return np.asarray(np.clip(inside / size, 0, 1))


def _tissue_share(
    mask: TissueMask, lefts: NDArray[Any], tops: NDArray[Any], size_x: float, size_y: float
) -> NDArray[np.float64]:
    """Share of tissue in each tile, `(rows, columns)`, from a summed-area table."""
    height, width = mask.tissue.shape
    table = np.zeros((height + 1, width + 1), dtype=np.int64)
    np.cumsum(np.cumsum(mask.tissue, axis=0, dtype=np.int64), axis=1, out=table[1:, 1:])
    x0, x1 = _span(lefts, size_x, mask.pixel_x, width)
    y0, y1 = _span(tops, size_y, mask.pixel_y, height)
    inside = table[y1[:, None], x1] - table[y0[:, None], x1] - table[y1[:, None], x0] + table[y0[:, None], x0]
    across = _overlap(lefts, size_x, 0, width * mask.pixel_x)
    down = _overlap(tops, size_y, 0, height * mask.pixel_y)
    return inside / ((y1 - y0)[:, None] * (x1 - x0)) * np.outer(down, across)


def _span(starts: NDArray[Any], size: float, pixel: float, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first = np.clip(np.rint(starts / pixel), 0, limit - 1).astype(np.int64)
    last = np.clip(np.rint((starts + size) / pixel), first + 1, limit).astype(np.int64)
    return first, last
