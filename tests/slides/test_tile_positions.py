"""Colours that say where they lie: each tile shows what lies at its coordinate, to within a fraction of a pixel."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.slides import TileGrid, TileReader, grid, open_slide, plan_grid
from atlas_edge.slides.grid import tile_around

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

WIDTH, HEIGHT, TILE_PX, PERIOD, SLOPE = 1640, 1100, 224, 256, 2
Values = NDArray[np.float64]


def wave(place: Values) -> Values:
    """Grey levels along an axis, two a pixel up and down again; pixel k has its middle at k + 0.5.

    Two, so that the mean of two or four pixels is a whole number, too.
    """
    return SLOPE * np.abs((np.asarray(place) - 0.5) % PERIOD - PERIOD / 2)


def draw(path: Path, mpp: float, downs: tuple[int, ...], *, ome: bool) -> Path:
    """Red and green say x and y; a level is the mean of the pixels below it, no file loses any."""
    x, y = np.meshgrid(wave(np.arange(WIDTH) + 0.5), wave(np.arange(HEIGHT) + 0.5))
    full = np.stack([np.minimum(x, 255), np.minimum(y, 255), np.full_like(x, 128)], axis=2)
    options: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib" if ome else None}
    said = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp} if ome else None
    with tifffile.TiffWriter(path, ome=ome) as file:
        for number, down in enumerate(downs):
            part = full[: HEIGHT // down * down, : WIDTH // down * down]
            level = part.reshape(HEIGHT // down, down, WIDTH // down, down, 3).mean(axis=(1, 3))
            file.write(
                np.rint(level).astype(np.uint8), subfiletype=int(number > 0), metadata=None if number else said,
                subifds=len(downs) - 1 if ome and not number else 0, resolution=(1e4 / (mpp * down),) * 2,
                resolutionunit="CENTIMETER", **options,
            )  # fmt: skip
    return path


def shift(seen: Values, corner: float, size: float, limit: float) -> float:
    """Level-0 pixels by which a tile shows what lies further along an axis than its coordinate says, by least squares.

    Args:
        seen: The tile's grey levels along that axis, meant over the other one.
        corner: Its coordinate.
        size: Level-0 pixels that it spans.
        limit: Of the slide along that axis.
    """
    scale = size / TILE_PX
    place = corner + (np.arange(TILE_PX) + 0.5) * scale
    turn = np.abs((place - 0.5) % (PERIOD / 2) - PERIOD / 4) > PERIOD / 4 - 4 * max(scale, 1)
    whole = ~turn & (place < limit - 4 * max(scale, 1)) & (place > 4 * max(scale, 1))
    slope = SLOPE * np.sign(wave(place + 0.25) - wave(place - 0.25))[whole]
    assert whole.sum() > 20
    return float((slope * (seen - wave(place))[whole]).sum() / (slope**2).sum())


def shifts(plan: TileGrid, reader: TileReader) -> tuple[Values, Values]:
    """Of each tile, across and downwards."""
    read = reader.read(plan.coords)
    assert not read.unreadable and len(plan.coords) >= 4
    found = []
    for (x, y), tile in zip(plan.coords.tolist(), read.pixels.astype(float), strict=True):
        # What lies past the rim is white.
        rows, columns = (
            max(int((limit - at) / size * TILE_PX) - 4, 8) for limit, at, size in
            ((HEIGHT, y, plan.size_y), (WIDTH, x, plan.size_x))
        )  # fmt: skip
        across, down = tile[:rows, :, 0].mean(axis=0), tile[:, :columns, 1].mean(axis=1)
        found.append((shift(across, x, plan.size_x, WIDTH), shift(down, y, plan.size_y, HEIGHT)))
    across, down = np.array(found).T
    return across, down


@pytest.mark.parametrize(
    ("mpp", "downs", "tile_mpp", "overlap", "ome"),
    [
        (0.5, (1,), 0.5, 0, False),
        (0.5, (1,), 0.5, 56, True),
        (0.25, (1,), 0.5, 0, False),
        (0.25, (1, 2, 4), 0.5, 0, False),
        (0.25, (1, 2, 4), 0.5, 0, True),
        (0.2201, (1,), 0.5, 0, False),
        (0.2201, (1, 2), 0.5, 37, True),
        (0.37, (1,), 0.5, 0, False),
        (0.5, (1,), 0.37, 0, False),
    ],
)
def test_tiles_show_what_lies_at_their_coordinates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mpp: float, downs: tuple[int, ...], tile_mpp: float, overlap: int,
    ome: bool,
) -> None:  # fmt: skip
    slide = open_slide(draw(tmp_path / ("a.ome.tif" if ome else "a.tif"), mpp, downs, ome=ome))
    try:
        if tile_mpp < mpp:
            # No such tiles are embedded, since detail cannot be invented; where they were, they would lie right.
            with pytest.raises(InputError, match="detail cannot be invented"):
                plan_grid(slide, None, tile_px=TILE_PX, mpp=tile_mpp)
            monkeypatch.setattr(grid, "_MOST_UPSAMPLING", 2.0)
        plan = plan_grid(slide, None, tile_px=TILE_PX, mpp=tile_mpp, rim=True, overlap=overlap)
        across, down = shifts(plan, TileReader(slide, plan))
    finally:
        slide.close()
    # In pixels of the level that is read; coordinates are rounded to whole pixels of level 0.
    pixel = slide.levels[plan.level].downsample_x
    worst = max(np.abs(across).max(), np.abs(down).max())
    assert worst < 0.05 * pixel, f"{worst / pixel:.3f} px"


@pytest.mark.parametrize("mpp", [0.25, 0.31, 0.7, 0.9])
def test_a_tile_around_a_place_shows_it_in_its_middle(tmp_path: Path, mpp: float) -> None:
    slide = open_slide(draw(tmp_path / "a.ome.tif", 0.25, (1, 2, 4), ome=True))
    places = [(x, y) for x in (437.0, 641.5) for y in (420.0, 601.5)]
    try:
        plans = [tile_around(slide, x, y, tile_px=TILE_PX, mpp=mpp) for x, y in places]
        # As one grid: all have the same scale.
        plan = replace(plans[0], coords=np.concatenate([found.coords for found in plans]))
        across, down = shifts(plan, TileReader(slide, plan))
        rim = tile_around(slide, 0.0, HEIGHT, tile_px=TILE_PX, mpp=mpp)
    finally:
        slide.close()
    assert max(np.abs(across).max(), np.abs(down).max()) < 0.05 * slide.levels[plan.level].downsample_x
    middles = plan.coords + np.array([plan.size_x, plan.size_y]) / 2
    assert np.abs(middles - places).max() <= 0.5
    assert plan.size_x == pytest.approx(TILE_PX * mpp / 0.25, rel=0.01)
    assert rim.coords.tolist() == [[0, round(HEIGHT - rim.size_y)]]


def test_a_shift_is_noticed(tmp_path: Path) -> None:
    slide = open_slide(draw(tmp_path / "a.tif", 0.2201, (1,), ome=False))
    try:
        plan = plan_grid(slide, None, tile_px=TILE_PX, mpp=0.5)
        read = slide.read
        slide.read = lambda level, left, top, width, height: read(level, left + 1, top, width, height)  # type: ignore[method-assign]
        across, down = shifts(plan, TileReader(slide, plan))
    finally:
        slide.close()
    assert across == pytest.approx(1, abs=0.1) and np.abs(down).max() < 0.1
