import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides import TileReader, find_tissue, open_slide, plan_grid
from atlas_edge.slides.tissue.find import otsu_threshold

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


def pixels(height: int = 520, width: int = 700) -> NDArray[np.uint8]:
    image = np.full((height, width, 3), 245, dtype=np.uint8)
    image[100:400, 150:600] = (200, 110, 170)
    image[100:400:8, 150:600] = (90, 60, 140)
    return image


def write_tiff(path: Path, image: NDArray[np.uint8], mpp: float | None) -> Path:
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, **resolution)
    return path


def test_reads_tiles_as_they_are(tmp_path: Path) -> None:
    image = pixels()
    slide = open_slide(write_tiff(tmp_path / "a.tif", image, 0.5))
    assert slide.mpp_x == pytest.approx(0.5, rel=1e-3)
    grid = plan_grid(slide, None, tile_px=64, mpp=0.5)
    assert len(grid.coords) == grid.candidates == (520 // 64) * (700 // 64)
    read = TileReader(slide, grid).read(grid.coords)
    assert not read.unreadable
    for (x, y), tile in zip(grid.coords, read.pixels, strict=True):
        assert np.array_equal(tile, image[y : y + 64, x : x + 64])
    slide.close()


def test_resamples_by_the_true_mpp(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels(), 0.227))
    grid = plan_grid(slide, None, tile_px=64, mpp=0.5)
    assert grid.size_x == pytest.approx(64 * 0.5 / slide.mpp_x)
    assert grid.mpp == 0.5
    read = TileReader(slide, grid).read(grid.coords)
    assert read.pixels.shape == (len(grid.coords), 64, 64, 3)
    slide.close()


def test_finds_tissue_and_keeps_its_tiles(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels(), 0.5))
    mask = find_tissue(slide, mpp=4)
    assert mask.area_share == pytest.approx(300 * 450 / (520 * 700), rel=0.1)
    grid = plan_grid(slide, mask, tile_px=64, mpp=0.5, min_tissue=0.5)
    assert 0 < len(grid.coords) < grid.candidates
    assert (grid.coords[:, 0] >= 100).all()
    slide.close()


def test_mpp_is_for_slides_that_do_not_say_it_or_overrides(tmp_path: Path) -> None:
    silent = write_tiff(tmp_path / "silent.tif", pixels(), None)
    with pytest.raises(InputError, match=r"(?s)µm a pixel is.*--mpp"):
        open_slide(silent)
    slide = open_slide(silent, mpp=0.25)
    assert (slide.mpp_x, slide.mpp_y) == (0.25, 0.25)
    with pytest.raises(InputError, match="smaller than one tile"):
        plan_grid(slide, None, tile_px=5000, mpp=0.25)
    slide.close()
    says = write_tiff(tmp_path / "says.tif", pixels(), 0.5)
    for override, mpp, source in ((False, 0.5, "slide"), (True, 0.25, "--mpp")):
        slide = open_slide(says, mpp=0.25, override=override)
        assert (slide.mpp_x, slide.mpp_y, slide.mpp_source) == (pytest.approx(mpp), pytest.approx(mpp), source)
        assert slide.stated_mpp == (pytest.approx(0.5), pytest.approx(0.5))
        slide.close()
    with pytest.raises(UsageError, match="out of range"):
        open_slide(silent, mpp=0)


def test_does_not_invent_detail(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels(), 0.5))
    with pytest.raises(InputError, match="detail cannot be invented"):
        plan_grid(slide, None, tile_px=64, mpp=0.25)
    slide.close()


def test_says_what_is_wrong_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_slide(tmp_path / "none.svs")
    (tmp_path / "folder.svs").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        open_slide(tmp_path / "folder.svs")
    (tmp_path / "zero.svs").touch()
    with pytest.raises(InputError, match="0 bytes"):
        open_slide(tmp_path / "zero.svs")
    (tmp_path / "text.svs").write_text("no slide at all")
    with pytest.raises(InputError, match="no slide form"):
        open_slide(tmp_path / "text.svs")
    (tmp_path / "zeiss.czi").write_bytes(b"ZISRAWFILE" + bytes(600))
    with pytest.raises(InputError, match=r"(?s)zeiss\.czi.*export it as OME-TIFF"):
        open_slide(tmp_path / "zeiss.czi")
    monkeypatch.setattr("atlas_edge.slides.readers.openslide.detect_format", lambda _: None)
    with pytest.raises(InputError, match=r"(?s)zeiss\.czi is a Zeiss CZI, which this OpenSlide.*OME-TIFF"):
        open_slide(tmp_path / "zeiss.czi")


def test_closing_waits_for_a_read_and_refuses_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.slides.readers.openslide import OpenSlideFile

    slide = OpenSlideFile(write_tiff(tmp_path / "slide.tif", pixels(), 0.5), cache_bytes=2**20)
    genuine, entered, go_on, order = OpenSlideFile._read, threading.Event(), threading.Event(), []

    def slow(self: OpenSlideFile, *region: Any) -> NDArray[np.uint8]:
        entered.set()
        assert go_on.wait(60)
        pixels = genuine(self, *region)
        order.append("read")
        return pixels

    def close() -> None:
        slide.close()
        order.append("closed")

    monkeypatch.setattr(OpenSlideFile, "_read", slow)
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(slide.read, 0, 0, 0, 64, 64)
        assert entered.wait(60)
        closed = pool.submit(close)
        with pytest.raises(TimeoutError):
            closed.result(timeout=0.2)
        go_on.set()
        closed.result(60)
        assert read.result(60).shape == (64, 64, 3)
    assert order == ["read", "closed"]
    with pytest.raises(InputError, match="has been closed"):
        slide.read(0, 0, 0, 64, 64)


def test_otsu_parts_two_peaks() -> None:
    values = np.array([10] * 50 + [200] * 50, dtype=np.uint8)
    assert 10 <= otsu_threshold(values) < 200


def test_pale_immunostain_is_found_on_both_scanners(shared: Path) -> None:
    pytest.importorskip("imagecodecs")
    kept = []
    for name in ("OS-2-ndpi.ome.tif", "OS-2-vsi.ome.tif"):
        slide = open_slide(shared / "data" / "wsi" / name)
        kept.append(len(plan_grid(slide, find_tissue(slide), tile_px=224, mpp=0.5).coords))
        slide.close()
    # 16 tiles each; one lies nearly on glass.
    assert min(kept) >= 14


def test_truncated_svs(shared: Path, tmp_path: Path) -> None:
    data = (shared / "data" / "wsi" / "CMU-1-Small-Region.svs").read_bytes()
    cut = tmp_path / "cut.svs"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        slide = open_slide(cut)
        grid = plan_grid(slide, None, tile_px=224, mpp=slide.mpp_x)
        read = TileReader(slide, grid).read(grid.coords)
        slide.close()
        if read.unreadable:
            raise InputError("unreadable tiles are listed")


@pytest.mark.parametrize(
    ("name", "mpp"),
    [("CMU-1-Small-Region.svs", 0.499), ("OS-1-detail.ome.tif", 0.227), ("OS-2-vsi.ome.tif", 0.346)],
)
def test_real_slides(shared: Path, name: str, mpp: float) -> None:
    if name.endswith("ome.tif"):
        pytest.importorskip("imagecodecs")
    slide = open_slide(shared / "data" / "wsi" / name)
    assert slide.mpp_x == pytest.approx(mpp, abs=1e-3)
    grid = plan_grid(slide, find_tissue(slide), tile_px=224, mpp=0.5)
    read = TileReader(slide, grid).read(grid.coords)
    assert not read.unreadable
    x, y = grid.coords[0]
    level = slide.read(0, int(x), int(y), int(grid.size_x), int(grid.size_y))
    resized = np.asarray(Image.fromarray(level).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
    assert abs(resized - read.pixels[0]).mean() < 6
    slide.close()
