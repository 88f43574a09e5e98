"""Tissue from a file: which slide it belongs to, and what the output says of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.config import SlideFacts
from atlas_edge.embed.mask_files import masks_of, with_masks
from atlas_edge.embed.resume.plan import differences, plan_of
from atlas_edge.errors import InputError, UsageError
from embed.conftest import RunHere
from embed.test_embed import MeanEncoder

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")


def area(path: Path, right: int) -> Path:
    ring = [[0, 0], [right, 0], [right, 64], [0, 64], [0, 0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def test_each_slide_has_the_mask_of_its_name(tmp_path: Path) -> None:
    slides = [tmp_path / "in" / name for name in ("a.tif", "b.ome.tif", "c.svs")]
    (tmp_path / "in").mkdir()
    for slide in slides:
        slide.touch()
    for name in ("a.geojson", "b.ome.png"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"holds no mask of c\.svs"):
        masks_of(slides, tmp_path)
    (tmp_path / "c.mask.png").touch()
    assert [masks_of(slides, tmp_path)[slide].name for slide in slides] == ["a.geojson", "b.ome.png", "c.mask.png"]
    # What a person has drawn comes before what an earlier run has found.
    (tmp_path / "c.tif").touch()
    assert masks_of(slides, tmp_path)[slides[2]].name == "c.tif"
    (tmp_path / "c.png").touch()
    with pytest.raises(InputError, match=r"holds c\.png and c\.tif of one slide"):
        masks_of(slides, tmp_path)
    # A slide is not its own mask.
    assert masks_of(slides[:1], tmp_path)[slides[0]].name == "a.geojson"
    with pytest.raises(InputError, match=r"no mask of a\.tif"):
        masks_of(slides[:1], tmp_path / "in")
    with pytest.raises(UsageError, match="is one mask, 3 slides"):
        masks_of(slides, tmp_path / "a.geojson")
    with pytest.raises(InputError, match="does not exist"):
        masks_of(slides, tmp_path / "none")


def test_masks_join_what_a_list_says(tmp_path: Path) -> None:
    slide, mask = tmp_path / "a.tif", area(tmp_path / "a.geojson", 64)
    jobs, facts = [(slide, tmp_path / "a.h5")], {slide: SlideFacts(mpp=0.25)}
    assert with_masks(jobs, None, facts, EmbedConfig()) == facts
    found = with_masks(jobs, mask, facts, EmbedConfig())
    assert found == {slide: SlideFacts(mpp=0.25, mask=mask)}
    config = EmbedConfig(of_slides=found).of_slide(slide)
    assert (config.mpp, config.mask, config.of_slides) == (0.25, mask, None)
    for other, option in ((EmbedConfig(tissue=False), "--no-tissue"), (EmbedConfig(stain="he"), "--stain he")):
        with pytest.raises(UsageError, match=option):
            with_masks(jobs, mask, facts, other)


def test_the_mask_is_part_of_the_plan_and_in_the_attributes(scan: Path, tmp_path: Path) -> None:
    config = EmbedConfig(mask=area(tmp_path / "m.geojson", 128))
    result = embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", config)
    assert result.tiles == 8
    with h5py.File(tmp_path / "out.h5") as file:
        about, coords = dict(file.attrs), file["coords"][:]
    assert about["mask"] == "m.geojson" and len(about["mask_sha256"]) == 64
    assert "saturation_threshold" not in about
    assert (coords < (128, 64)).all()
    assert np.asarray(Image.open(tmp_path / "out.mask.png")).any()
    without = plan_of(MeanEncoder.spec, EmbedConfig(), "")
    assert differences(about, plan_of(MeanEncoder.spec, config, "")) == []
    assert differences(about, without)[0].startswith("mask_sha256 ")
    assert not differences({name: value for name, value in without.items() if name != "mask_sha256"}, without)
    area(config.mask, 64)
    assert differences(about, plan_of(MeanEncoder.spec, config, ""))
    assert embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", config).tiles == 4


def test_on_the_command_line(scan: Path, mean_bundle: Path, tmp_path: Path, run_here: RunHere) -> None:
    area(tmp_path / "scan.geojson", 128)
    arguments = [scan, "--bundle", mean_bundle, "--out", tmp_path / "o.h5", "--json"]
    done = run_here(*arguments, "--mask", tmp_path / "scan.geojson")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["slides"][0]["tiles"] == 8
    # Without the mask that is another plan, whose folder gives it, the same.
    assert run_here(*arguments).returncode == 2
    again = run_here(*arguments, "--mask", tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout)["skipped"], again.stderr
    (tmp_path / "scan.geojson").write_text("{}")
    broken = run_here(*arguments, "--mask", tmp_path / "scan.geojson", "--re-embed")
    assert broken.returncode == InputError.exit_code and "is no GeoJSON" in broken.stderr, broken.stderr
    assert "Traceback" not in broken.stderr
