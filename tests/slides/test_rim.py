"""Tiles at the rim, tiles of what was scanned, and tiles whose pixels are theirs alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.slides import Slide, TileReader, find_tissue, open_slide, plan_grid
from atlas_edge.slides.readers.openslide import OpenSlideFile

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

TILE = 64


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: NDArray[np.uint8], mpp: float = 0.5, **options: Any) -> Path:
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", metadata=None, **resolution, **options)
    return path


def test_tiles_that_reach_past_the_rim_are_white_there(tmp_path: Path) -> None:
    image = noise(3 * TILE + 20, 5 * TILE + 50)
    slide = open_slide(write(tmp_path / "a.tif", image))
    grid = plan_grid(slide, None, tile_px=TILE, mpp=0.5, rim=True)
    assert grid.candidates == len(grid.coords) == 4 * 6
    tiles = TileReader(slide, grid).read(grid.coords).pixels
    padded = np.full((4 * TILE, 6 * TILE, 3), 255, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    for (x, y), tile in zip(grid.coords, tiles, strict=True):
        assert np.array_equal(tile, padded[y : y + TILE, x : x + TILE])
    assert len(plan_grid(slide, None, tile_px=TILE, mpp=0.5).coords) == 3 * 5
    slide.close()


def test_what_lies_past_the_rim_is_no_tissue(tmp_path: Path) -> None:
    image = np.full((400, 3 * 128 + 40, 3), 244, dtype=np.uint8)
    image[:, 200:] = (200, 110, 170)
    slide = open_slide(write(tmp_path / "a.tif", image))
    mask = find_tissue(slide, mpp=2)
    for least, columns in ((0.1, {1, 2, 3}), (0.5, {2})):
        coords = plan_grid(slide, mask, tile_px=128, mpp=0.5, min_tissue=least, rim=True).coords
        assert set(coords[:, 0] // 128) == columns
    slide.close()


def test_a_slide_smaller_than_a_tile_is_one_tile(tmp_path: Path) -> None:
    image = noise(40, 50)
    slide = open_slide(write(tmp_path / "a.tif", image))
    grid = plan_grid(slide, None, tile_px=TILE, mpp=0.5, rim=True)
    (tile,) = TileReader(slide, grid).read(grid.coords).pixels
    assert np.array_equal(tile[:40, :50], image)
    assert (tile[40:] == 255).all()
    with pytest.raises(InputError, match="smaller than one tile"):
        plan_grid(slide, None, tile_px=TILE, mpp=0.5)
    slide.close()


def test_without_tissue_search_the_scanned_part_is_taken(tmp_path: Path) -> None:
    slide = open_slide(write(tmp_path / "a.tif", noise(640, 640)))
    slide.bounds = (130, 64, 250, 200)
    grid = plan_grid(slide, None, tile_px=TILE, mpp=0.5, min_tissue=0.1, rim=True)
    assert (set(grid.coords[:, 0] // TILE), set(grid.coords[:, 1] // TILE)) == ({2, 3, 4, 5}, {1, 2, 3, 4})
    slide.close()


@pytest.fixture(params=["tifffile", "openslide", "openslide, pyramid of 2.1"])
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Slide:
    path = tmp_path / "scan.tif"
    image, resolution = noise(700, 1100), {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(image, tile=(128, 128), photometric="rgb", metadata=None, **resolution)
        if "2.1" in request.param:
            file.write(image[:333, :523], tile=(128, 128), photometric="rgb", metadata=None, subfiletype=1)
    if request.param == "tifffile":
        from atlas_edge.slides.readers.tiff import TiffSlide

        slide: Slide = TiffSlide(path, cache_bytes=2**24)
    else:
        slide = OpenSlideFile(path, cache_bytes=2**24)
    slide.mpp_x = slide.mpp_y = 0.25
    return slide


@pytest.mark.parametrize("mpp", [0.5, 0.61, 0.25])
def test_pixels_do_not_depend_on_what_else_is_read(scan: Slide, mpp: float) -> None:
    grid = plan_grid(scan, None, tile_px=TILE, mpp=mpp, rim=True)
    reader = TileReader(scan, grid)
    together = reader.read(grid.coords).pixels
    for index in range(len(grid.coords)):
        assert np.array_equal(reader.read(grid.coords[index : index + 1]).pixels[0], together[index]), index
    shuffled = np.random.default_rng(0).permutation(len(grid.coords))
    assert np.array_equal(reader.read(grid.coords[shuffled]).pixels, together[shuffled])
    scan.close()


def test_a_fault_that_passes_loses_no_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.slides.readers.tiff import TiffSlide

    slide = open_slide(write(tmp_path / "a.tif", noise(512, 512), compression="jpeg"))
    assert isinstance(slide, TiffSlide)
    slide.close()  # as a share that was gone: this handle stays useless
    grid = plan_grid(slide, None, tile_px=TILE, mpp=0.5)
    assert not TileReader(slide, grid).read(grid.coords).unreadable


@pytest.mark.parametrize(("share", "total", "limit"), [(0.01, 90, 4), (0.01, 1000, 10), (0.01, 12, 1), (0.0, 90, 0)])
def test_one_damaged_tile_of_the_scanner_does_not_fail_a_small_slide(share: float, total: int, limit: int) -> None:
    from atlas_edge.embed.fill import _most_unreadable

    assert _most_unreadable(share, total) == limit
