"""OME-TIFF: scale, levels and the choice of image come from its OME-XML."""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.slides import Slide, open_slide, plan_grid

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


def ramp(height: int = 1024, width: int = 1280) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def size(x: float, y: float | None = None, unit: str = "µm") -> dict[str, Any]:
    said: dict[str, Any] = {"axes": "YXS", "PhysicalSizeX": x, "PhysicalSizeXUnit": unit}
    return said if y is None else said | {"PhysicalSizeY": y, "PhysicalSizeYUnit": unit}


def write(path: Path, *images: tuple[NDArray[np.uint8], dict[str, Any]], subifds: int = 0, **options: Any) -> Path:
    with tifffile.TiffWriter(path, ome=True) as file:
        for image, metadata in images:
            axes = {} if image.shape[2] == 3 else {"axes": "SYX"}
            file.write(image, subifds=subifds, metadata=metadata | axes, tile=(256, 256), photometric="rgb", **options)
            for level in range(subifds):
                step = 2 ** (level + 1)
                file.write(image[::step, ::step], subfiletype=1, tile=(256, 256), photometric="rgb", **options)
    return path


def opened(path: Path, **options: Any) -> Slide:
    slide = open_slide(path, **options)
    slide.close()
    return slide


@pytest.mark.parametrize(
    "tag",
    [
        {},
        {"resolution": (72, 72), "resolutionunit": "INCH"},
        {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"},
    ],
    ids=["no-tag", "72-dpi", "another-scale"],
)
def test_scale_and_levels_come_from_ome_xml_whatever_the_tags_say(tmp_path: Path, tag: dict[str, Any]) -> None:
    image = ramp()
    slide = open_slide(write(tmp_path / "a.ome.tif", (image, size(0.25, 0.25)), subifds=2, **tag))
    assert (slide.vendor, slide.mpp_x, slide.mpp_y) == ("ome-tiff", 0.25, 0.25)
    assert [(level.width, level.height) for level in slide.levels] == [(1280, 1024), (640, 512), (320, 256)]
    assert plan_grid(slide, None, tile_px=64, mpp=1.0).level == 2
    assert np.array_equal(slide.read(2, 30, 20, 200, 100), image[::4, ::4][20:120, 30:230])
    slide.close()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (size(0.25, 0.3), (0.25, 0.3)),
        (size(250, 300, "nm"), (0.25, 0.3)),
        (size(0.00025, 0.0003, "mm"), (0.25, 0.3)),
        (size(0.25), (0.25, 0.25)),
    ],
)
def test_units_and_pixels_that_are_not_square(
    tmp_path: Path, said: dict[str, Any], expected: tuple[float, float]
) -> None:
    slide = opened(write(tmp_path / "a.ome.tif", (ramp(), said)))
    assert (slide.mpp_x, slide.mpp_y) == pytest.approx(expected)


@pytest.mark.parametrize("said", [{"axes": "YXS"}, size(1, 1, "pixel")], ids=["silent", "pixel"])
def test_no_length_is_no_scale(tmp_path: Path, said: dict[str, Any]) -> None:
    path = write(tmp_path / "a.ome.tif", (ramp(), said))
    with pytest.raises(InputError, match="does not say how many µm"):
        open_slide(path)
    assert opened(path, mpp=0.25).mpp_x == 0.25


def test_the_slide_is_told_from_label_and_macro_by_name_and_size(tmp_path: Path) -> None:
    label, macro, scan = ramp(256, 512), ramp(2000, 1500), ramp(900, 1100)
    path = write(
        tmp_path / "a.ome.tif",
        (label, size(20, 20) | {"Name": "label image"}),
        (macro, size(16, 16) | {"Name": "Macro"}),
        (scan, size(0.25, 0.25) | {"Name": "scan"}),
    )
    slide = open_slide(path)
    assert (slide.levels[0].width, slide.levels[0].height, slide.mpp_x) == (1100, 900, 0.25)
    assert np.array_equal(slide.read(0, 0, 0, 1100, 900), scan)
    slide.close()


def test_channels_that_lie_apart_are_put_together(tmp_path: Path) -> None:
    image = ramp()
    planar = np.ascontiguousarray(image.transpose(2, 0, 1))
    slide = open_slide(write(tmp_path / "a.ome.tif", (planar, size(0.25, 0.25)), planarconfig="separate"))
    assert np.array_equal(slide.read(0, 200, 100, 600, 500), image[100:600, 200:800])
    slide.close()


def test_a_level_without_its_tiles_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", (ramp(), size(0.25, 0.25)), subifds=2)
    with tifffile.TiffFile(path) as file:
        height = file.series[0].levels[2].keyframe.tags["ImageLength"].valueoffset
    data = bytearray(path.read_bytes())
    data[height : height + 2] = (60_000).to_bytes(2, "little")
    path.write_bytes(data)
    assert [level.width for level in opened(path).levels] == [1280, 640]


def test_what_a_library_warns_of_a_damaged_slide_is_not_told_beside_the_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", (ramp(), size(0.25, 0.25)))
    data = bytearray(path.read_bytes())
    software = data.index(struct.pack("<HH", 305, 2))
    data[software : software + 8] = struct.pack("<HHI", 339, 3, 2049)  # many formats of samples
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match="cannot be opened"):
            open_slide(path)
    assert not told
