"""OME-Zarr: scale and levels from its JSON in both versions, and what is wrong with one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.jobs import expand, leave_out_done, one_or_many
from atlas_edge.embed.output.files import check_form
from atlas_edge.embed.resume.plan import attributes_of, plan_of
from atlas_edge.embed.slide_files import find_slides, slide_identity, slide_stem
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides import open_slide
from atlas_edge.slides.readers.ngff import is_ngff
from embed.test_embed import MeanEncoder

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")


def scene(height: int = 300, width: int = 420) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def said_of(axes: str, unit: str | None, scale: float, levels: int) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in named:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    steps = [[scale * 2**level if axis in "xy" else 1.0 for axis in axes] for level in range(levels)]
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": step}]}
        for level, step in enumerate(steps)
    ]
    return {"axes": named, "datasets": datasets}


def write(
    folder: Path, version: str = "0.5", *, image: NDArray[Any] | None = None, axes: str = "tczyx",
    unit: str | None = "micrometer", scale: float = 0.5, levels: int = 2,
) -> Path:  # fmt: skip
    image = scene() if image is None else image
    about = {"multiscales": [said_of(axes, unit, scale, levels)]}
    group = zarr.create_group(folder, zarr_format=2 if version == "0.4" else 3)
    group.attrs.update({"ome": {"version": version, **about}} if version == "0.5" else about)
    for level in range(levels):
        part = image[:: 2**level, :: 2**level]
        order = [axis for axis in axes if axis in "yxc"]
        data = part.transpose(["yxc".index(axis) for axis in order])
        data = data.reshape([data.shape[order.index(axis)] if axis in order else 1 for axis in axes])
        chunks = tuple(100 if axis in "yx" else data.shape[place] for place, axis in enumerate(axes))
        group.create_array(str(level), data=data, chunks=chunks)
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc"])
def test_pixels_levels_and_scale(tmp_path: Path, version: str, axes: str) -> None:
    slide = open_slide(write(tmp_path / "a.ome.zarr", version, axes=axes))
    assert (slide.vendor, slide.mpp_x, slide.mpp_y, slide.mpp_source) == ("ome-zarr", 0.5, 0.5, "slide")
    assert [(level.width, level.height) for level in slide.levels] == [(420, 300), (210, 150)]
    assert np.array_equal(slide.read(0, 30, 20, 350, 250), scene()[20:270, 30:380])
    assert np.array_equal(slide.read(1, 5, 90, 150, 60), scene()[::2, ::2][90:150, 5:155])
    past = slide.read(0, 400, 290, 50, 30)
    assert (
        np.array_equal(past[:10, :20], scene()[290:, 400:]) and (past[10:] == 255).all() and (past[:, 20:] == 255).all()
    )
    slide.close()


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"), [("nanometer", 250, 0.25), ("millimeter", 0.00025, 0.25), (None, 0.25, None)]
)
def test_units(tmp_path: Path, unit: str | None, scale: float, mpp: float | None) -> None:
    path = write(tmp_path / "a.zarr", unit=unit, scale=scale)
    if mpp is None:
        with pytest.raises(InputError, match="does not say how many µm"):
            open_slide(path)
        return
    slide = open_slide(path)
    slide.close()
    assert slide.mpp_x == pytest.approx(mpp)


def test_of_bioformats2raws_images_the_largest_is_the_slide(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for number, size in enumerate((200, 300, 100)):
        write(tmp_path / "a.zarr" / str(number), "0.4", image=scene(size, size))
    slide = open_slide(tmp_path / "a.zarr")
    slide.close()
    assert slide.levels[0].width == 300


def test_it_is_one_slide_among_others_and_no_output(tmp_path: Path) -> None:
    path, out = write(tmp_path / "in" / "sub" / "a.ome.zarr"), tmp_path / "out"
    assert list(find_slides(tmp_path / "in", None)) == [path] and slide_stem(path) == "a.ome"
    for given in (path, tmp_path / "in", tmp_path / "in" / "sub" / "*.zarr"):
        assert [slide.path for slide in expand([given], out)] == [path]
    jobs = one_or_many(expand([path], out), [path], out, "h5")
    assert jobs == [(path, out / "a.ome.h5")]
    config = EmbedConfig(tissue=False, overview=False)
    assert embed_slide(path, MeanEncoder(), jobs[0][1], config).tiles == 139  # one corner is hardly there
    plan = plan_of(MeanEncoder.spec, config, "")
    assert leave_out_done(jobs, lambda _: plan, overwrite=False, re_embed=False)[1]
    with h5py.File(jobs[0][1]) as file:
        assert file.attrs["slide"] == "a.ome.zarr"
    before = slide_identity(path)
    (path / "0" / "c" / "0" / "0" / "0" / "0" / "0").write_bytes(b"other")
    assert slide_identity(path) != before
    # Nothing ever replaces it, and embeddings are no slide.
    assert attributes_of(path) is None
    with pytest.raises(UsageError, match="is a slide, which no embeddings replace"):
        check_form(path)
    embed_slide(write(tmp_path / "b.zarr"), MeanEncoder(), out / "b.zarr", config)
    assert not is_ngff(out / "b.zarr") and attributes_of(out / "b.zarr")
    assert list(find_slides(out, None)) == []


def test_what_is_wrong_with_one(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.zarr", image=scene().astype(np.uint16))
    with pytest.raises(InputError, match=r"holds uint16 tczyx \(1, 3, 1, 300, 420\), expected 8-bit RGB"):
        open_slide(deep)
    grey = write(tmp_path / "grey.zarr", image=scene()[..., :1])
    with pytest.raises(InputError, match="expected 8-bit RGB"):
        open_slide(grey)
    lost = write(tmp_path / "lost.zarr")
    shutil.rmtree(lost / "0")
    with pytest.raises(InputError, match=r"lost\.zarr is no whole OME-Zarr"):
        open_slide(lost)
    out_of_it = write(tmp_path / "out.zarr")
    about = json.loads((out_of_it / "zarr.json").read_bytes())
    about["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "../deep.zarr/0"
    (out_of_it / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="says that its levels are"):
        open_slide(out_of_it)
    for broken in ("{", '{"attributes": {"ome": {"multiscales": [7]}}}', '{"attributes": {"ome": {"multiscales": 7}}}'):
        (out_of_it / "zarr.json").write_text(broken)
        with pytest.raises(InputError):
            open_slide(out_of_it)


def test_a_damaged_chunk_is_an_unreadable_tile(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    (path / "0" / "c" / "0" / "0" / "0" / "1" / "1").write_bytes(b"nothing that decodes")
    slide = open_slide(path)
    try:
        with pytest.raises(InputError, match="its chunk 1, 1 of level 0 cannot be decoded"):
            slide.read(0, 150, 150, 10, 10)
        assert np.array_equal(slide.read(0, 0, 0, 100, 100), scene()[:100, :100])
    finally:
        slide.close()
