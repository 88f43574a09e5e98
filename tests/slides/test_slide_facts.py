"""What a slide says of itself, beside its pixels: for whoever audits a file of embeddings."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageCms

from atlas_edge.slides import Slide, open_slide
from atlas_edge.slides.readers.openslide import OpenSlideFile
from embed.conftest import make_mean_bundle
from support import RunCommand

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


def write(path: Path, mpp: float | None = 0.5, **options: Any) -> Path:
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    image = np.full((300, 400, 3), 240, dtype=np.uint8)
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, **options)
    return path


def opened(path: Path, **options: Any) -> Slide:
    slide = open_slide(path, **options)
    slide.close()
    return slide


def test_an_icc_profile_is_known_by_its_hash(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_one = opened(write(tmp_path / "with.tif", iccprofile=profile))
    assert with_one.icc_sha256 == hashlib.sha256(profile).hexdigest()
    assert opened(write(tmp_path / "without.tif")).icc_sha256 is None


def test_the_scanned_part_and_the_objective_are_taken_from_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = openslide.OpenSlide.properties.fget
    extra = {f"openslide.bounds-{name}": str(value) for name, value in zip(("x", "y"), (40, 30), strict=True)}
    extra |= {"openslide.bounds-width": "200", "openslide.bounds-height": "100", "openslide.objective-power": "20"}
    monkeypatch.setattr(openslide.OpenSlide, "properties", property(lambda self: {**genuine(self), **extra}))
    path = write(tmp_path / "a.tif", compression="jpeg")
    slide = opened(path)
    assert (slide.bounds, slide.objective) == ((40, 30, 200, 100), 20.0)
    assert not isinstance(slide, OpenSlideFile)  # the shortcut past OpenSlide keeps what OpenSlide knows
    assert slide.quickhash == genuine(openslide.OpenSlide(path))["openslide.quickhash-1"]
    extra["openslide.bounds-width"] = "wide"
    assert opened(path).bounds is None


@pytest.mark.parametrize("mpp", [None, 25_400 / 72], ids=["no-tag", "72-dpi"])
def test_mpp_in_a_description_is_read(tmp_path: Path, mpp: float | None) -> None:
    slide = opened(write(tmp_path / "motic.tif", mpp, description="Motic|AppMag = 40|MPP = 0.257290"))
    assert (slide.mpp_x, slide.mpp_y, slide.mpp_source) == (0.25729, 0.25729, "slide")


def test_a_tag_that_a_scanner_could_have_wins_over_the_description(tmp_path: Path) -> None:
    slide = opened(write(tmp_path / "both.tif", 0.5, description="Motic|MPP = 0.257290"))
    assert slide.mpp_x == pytest.approx(0.5)


def test_mpp_option_overrides_one_slide_and_fills_in_for_several(tmp_path: Path, run_command: RunCommand) -> None:
    bundle = make_mean_bundle(tmp_path / "bundle")
    slides = [write(tmp_path / "says.tif", 0.25), write(tmp_path / "silent.tif", None)]
    options = ("--mpp", "0.5", "--no-tissue", "--tile-mpp", "0.5", "--bundle", bundle, "--dry-run", "--json")
    for named, expected in ((slides[:1], [0.5]), (slides, [0.25, 0.5])):
        done = run_command("atlas-embed", *named, *options, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        assert [plan["slide_mpp"] for plan in json.loads(done.stdout)["plans"]] == pytest.approx(expected)


def test_a_slide_that_must_be_enlarged_is_told_once(tmp_path: Path, run_command: RunCommand) -> None:
    bundle = make_mean_bundle(tmp_path / "bundle")
    options = ("--no-tissue", "--bundle", bundle, "--dry-run", "--out", tmp_path / "out.h5")
    for name, mpp, told in (("fine", 0.504, 0), ("coarse", 0.53, 1)):
        done = run_command("atlas-embed", write(tmp_path / f"{name}.tif", mpp), *options)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("enlarged") == told
        assert (f"{name}.tif: 0.53 µm per pixel, the encoder wants 0.5" in done.stderr) == bool(told)
    done = run_command("atlas-embed", write(tmp_path / "coarser.tif", 0.56), *options)
    assert done.returncode == 5
    assert "--tile-mpp 0.56" in done.stderr
