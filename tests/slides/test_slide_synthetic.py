"""The synthetic slide: what OpenSlide sees of it, and what the tissue finder makes of it."""

from pathlib import Path

import numpy as np
import pytest

from atlas_edge.errors import UsageError
from atlas_edge.slides import TileReader, find_tissue, open_slide, plan_grid
from atlas_edge.slides.synthetic import SyntheticSlide, make_slide

pytest.importorskip("openslide")
pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("synthetic") / "slide.tif", 5000, 4100)


def test_openslide_reads_it_as_a_generic_tiff(made: SyntheticSlide) -> None:
    slide = open_slide(made.path)
    assert slide.vendor == "generic-tiff"
    assert (slide.mpp_x, slide.mpp_y) == (0.5, 0.5)
    assert [(level.width, level.height) for level in slide.levels] == [
        (5000, 4100),
        (2500, 2050),
        (1250, 1025),
        (625, 513),
    ]
    assert made.levels == 4
    # The levels show the same: glass stays glass, tissue stays tissue, down to the last row.
    fine = slide.thumbnail(4.0).astype(float)
    coarse = slide.read(3, 0, 0, 625, 513).astype(float)
    assert abs(fine - coarse[: len(fine)]).mean() < 4
    slide.close()


def test_tissue_is_told_from_glass_pen_and_dust(made: SyntheticSlide) -> None:
    slide = open_slide(made.path)
    mask = find_tissue(slide)
    # Pale adipose tissue is mostly holes: some of it counts as glass.
    assert made.tissue_share * 0.7 < mask.area_share < made.tissue_share * 1.05
    pen_y, pen_x = int(0.93 * mask.tissue.shape[0]), int(0.15 * mask.tissue.shape[1])
    assert mask.rejected[pen_y, pen_x]
    assert not mask.tissue[pen_y, pen_x]
    grid = plan_grid(slide, mask, tile_px=224, mpp=0.5)
    assert 0.4 * grid.candidates < len(grid.coords) < 0.9 * grid.candidates
    read = TileReader(slide, grid).read(grid.coords[:32])
    assert not read.unreadable
    assert read.pixels.std(axis=(1, 2)).max() > 15
    slide.close()


def test_same_seed_same_slide_and_another_another(tmp_path: Path) -> None:
    names = (("a", 0), ("b", 0), ("c", 1))
    a, b, c = (make_slide(tmp_path / f"{name}.tif", 700, 600, seed=seed).path for name, seed in names)
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes() != c.read_bytes()


@pytest.mark.parametrize("size", [(100, 5000), (5000, 300_000)])
def test_refuses_a_size_that_cannot_be(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="cannot be made"):
        make_slide(tmp_path / "slide.tif", *size)
    assert not list(tmp_path.iterdir())


def test_pale_tissue_beside_strong_is_tissue(tmp_path: Path) -> None:
    import tifffile

    image = np.full((1600, 1600, 3), 244, dtype=np.uint8)
    image += np.random.default_rng(0).integers(0, 3, image.shape, dtype=np.uint8)
    image[200:700, 200:1400] = (228, 205, 222)  # saturation 26: mucin
    image[800:1400, 200:1400] = (170, 80, 140)
    path = tmp_path / "pale.tif"
    resolution = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", metadata=None, **resolution)
    slide = open_slide(path)
    mask = find_tissue(slide, mpp=4)
    slide.close()
    assert mask.tissue[450 // 8, 800 // 8]
    assert mask.tissue[1100 // 8, 800 // 8]
    assert mask.area_share == pytest.approx((500 + 600) * 1200 / 1600**2, rel=0.05)


def test_the_shortcut_past_openslide_gives_its_pixels(made: SyntheticSlide) -> None:
    from atlas_edge.slides.readers.openslide import OpenSlideFile

    direct, slow = open_slide(made.path), OpenSlideFile(made.path, cache_bytes=2**24)
    assert not isinstance(direct, OpenSlideFile)
    for level, size in enumerate(slow.levels):
        width, height = min(700, size.width), min(700, size.height)
        corner = (size.width - width, size.height - height)
        pixels = direct.read(level, *corner, width, height)
        assert np.array_equal(pixels, slow.read(level, *corner, width, height))
    assert direct.file_s is not None
    assert direct.file_s > 0
    direct.close()
    slow.close()


def test_no_shortcut_where_the_pixels_would_differ(made: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.slides.readers.openslide import OpenSlideFile
    from atlas_edge.slides.readers.tiff import TiffSlide

    genuine = TiffSlide.read
    monkeypatch.setattr(TiffSlide, "read", lambda *arguments: genuine(*arguments) ^ 1)
    slide = open_slide(made.path)
    assert isinstance(slide, OpenSlideFile)
    assert slide.read(0, 0, 0, 8, 8).min() > 200
    slide.close()
