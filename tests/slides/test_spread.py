"""Some tiles in place of all: the same ones each time, spread over all tissue, each standing for its neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_edge.slides import TileGrid
from atlas_edge.slides.spread import _along_hilbert, spread_evenly, spread_over


def grid_of(coords: list[tuple[int, int]], *, overlap: int = 0) -> TileGrid:
    return TileGrid(
        level=0, tile_px=32, mpp=0.5, scale_x=1, scale_y=1, size_x=32, size_y=32, overlap=overlap, candidates=999,
        coords=np.array(coords, dtype=np.int64), tissue_share=np.linspace(0.1, 1, len(coords), dtype=np.float32),
    )  # fmt: skip


def test_the_curve_goes_from_neighbour_to_neighbour() -> None:
    cells = np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2)
    places = _along_hilbert(cells)
    assert sorted(places) == list(range(256))
    walked = cells[np.argsort(places)]
    assert (np.abs(np.diff(walked, axis=0)).sum(axis=1) == 1).all()
    # By hand: the curve of four cells is a U that lies on its side.
    assert _along_hilbert(np.array([[0, 0], [0, 1], [1, 1], [1, 0]])).tolist() == [0, 1, 2, 3]


@given(
    cells=st.sets(st.tuples(st.integers(0, 40), st.integers(0, 25)), min_size=1, max_size=80),
    most=st.integers(1, 80),
    corner=st.tuples(st.integers(-5, 999), st.integers(0, 999)),
)
def test_each_tile_stands_for_equally_many(cells: set[tuple[int, int]], most: int, corner: tuple[int, int]) -> None:
    coords = np.array(sorted(cells)) * 32 + corner
    most = min(most, len(coords))
    kept, stands_in = spread_over(coords, most)
    assert len(kept) == most and (np.diff(kept) > 0).all()
    assert (stands_in[kept] == kept).all()
    counts = np.bincount(stands_in, minlength=len(coords))[kept]
    assert counts.sum() == len(coords) and counts.max() - counts.min() <= 1
    again = spread_over(coords, most)
    assert np.array_equal(kept, again[0]) and np.array_equal(stands_in, again[1])


def test_no_part_of_the_tissue_is_left_without_a_tile() -> None:
    grid = grid_of([(32 * x, 32 * y) for y in range(32) for x in range(32)])
    kept, stands_in = spread_over(grid.coords, 64)
    # Sixteen tiles each: runs of the curve are squares of 4 x 4 here, one tile each.
    assert len({(x // 128, y // 128) for x, y in grid.coords[kept].tolist()}) == 64
    assert np.abs(grid.coords - grid.coords[stands_in]).max() < 128


@pytest.mark.parametrize("overlap", [0, 16])
def test_a_grid_says_what_it_leaves_out(overlap: int) -> None:
    step = 32 - overlap
    grid = grid_of([(step * x, step * y) for y in range(6) for x in range(7)], overlap=overlap)
    part = spread_evenly(grid, 10)
    assert part.skipped is not None and len(part.coords) == 10 and part.skipped_tiles == 32
    both = np.concatenate([part.coords, part.skipped.coords])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, grid.coords.tolist()))
    assert part.tissue_share is not None and grid.tissue_share is not None
    for corner, share in zip(part.coords, part.tissue_share, strict=True):
        assert grid.tissue_share[(grid.coords == corner).all(axis=1)] == share
    assert ((part.skipped.by >= 0) & (part.skipped.by < 10)).all()
    assert np.abs(part.skipped.coords - part.coords[part.skipped.by]).max() <= 4 * step
    assert part.candidates == 999


@pytest.mark.parametrize("most", [3, 4])
def test_a_grid_with_few_tiles_stays_whole(most: int) -> None:
    grid = grid_of([(0, 0), (32, 0), (0, 32)])
    assert spread_evenly(grid, most) is grid and grid.skipped_tiles == 0


def test_one_tile_stands_for_all() -> None:
    part = spread_evenly(grid_of([(32 * x, 0) for x in range(5)]), 1)
    assert part.skipped is not None and part.coords.tolist() == [[64, 0]] and part.skipped.by.tolist() == [0] * 4
