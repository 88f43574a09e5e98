"""Some of a grid's tiles, spread evenly over its tissue."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from atlas_edge.slides.grid import SkippedTiles, TileGrid


def spread_evenly(grid: TileGrid, most: int) -> TileGrid:
    """Keep at most so many tiles of a grid, and say which of them stands for each of the others.

    The same tiles whenever the grid is the same; see `spread_over`.

    Args:
        grid: All tiles with tissue.
        most: Tiles to keep, at least one.
    """
    if len(grid.coords) <= most:
        return grid
    kept, stands_in = spread_over(grid.coords, most)
    others = np.setdiff1d(np.arange(len(grid.coords)), kept)
    share = grid.tissue_share
    return dataclasses.replace(
        grid,
        coords=grid.coords[kept],
        tissue_share=None if share is None else share[kept],
        skipped=SkippedTiles(coords=grid.coords[others], by=np.searchsorted(kept, stands_in[others])),
    )


def spread_over(coords: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tiles that are spread evenly, and for every tile the one of them that stands for it.

    Tiles are put in the order in which Hilbert's curve meets them (Hilbert, Mathematische Annalen 38, 1891), where
    neighbours on the curve are neighbours on the slide. It is cut into `most` runs of equal length, give or take one
    tile, and the tile in the middle of each stands for its run: their plain mean is that of all parts of the tissue.

    Args:
        coords: `(N, 2)`, corners of a grid's tiles.
        most: Tiles to keep, 1 to N.

    Returns:
        Indices that are kept, `(most,)`, ascending; of every tile the index of the one that stands for it, `(N,)`.
    """
    # Columns and rows, by what is in the coordinates alone: an output says no more.
    cells = np.stack([np.unique(along, return_inverse=True)[1] for along in coords.T], axis=1)
    order = np.argsort(_along_hilbert(cells), kind="stable")
    bounds = np.arange(most + 1) * len(coords) // most
    middles = order[(bounds[:-1] + bounds[1:] - 1) // 2]
    stands_in = np.empty(len(coords), dtype=np.int64)
    stands_in[order] = np.repeat(middles, np.diff(bounds))
    return np.sort(middles), stands_in


def _along_hilbert(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where on the curve cells `(N, 2)` lie: Warren, Hacker's Delight (2nd edition), figure 16-8, for many at once."""
    x, y = cells[:, 0].copy(), cells[:, 1].copy()
    found = np.zeros(len(cells), dtype=np.int64)
    half = 1 << max(int(cells.max()).bit_length() - 1, 0)
    while half:
        right, low = (x & half) > 0, (y & half) > 0
        found += half * half * ((3 * right) ^ low)
        x, y = x & (half - 1), y & (half - 1)
        turned = ~low & right
        x[turned], y[turned] = half - 1 - x[turned], half - 1 - y[turned]
        x[~low], y[~low] = y[~low], x[~low]
        half >>= 1
    return found
