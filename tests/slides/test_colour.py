"""ICC profiles: colours become sRGB, through the readers and in what is embedded."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageCms

from atlas_edge.bench.slides.check import check_slides, read_features
from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.resume.plan import differences, plan_of
from atlas_edge.errors import InputError
from atlas_edge.slides import open_slide
from atlas_edge.slides.colour import to_srgb
from embed.test_embed import MeanEncoder

pytest.importorskip("openslide")
h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")


def swapped_profile() -> bytes:
    """SRGB whose red and blue have changed their names: what it calls (r, g, b) looks as (b, g, r) does."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"____", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"____", b"bXYZ", 1)


def make_slide(path: Path, profile: bytes | None, compression: str | None = None) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(90, 180, (128, 128, 3), dtype=np.uint8)
    pixels[..., 0] += 60
    options = {} if compression is None else {"compression": compression}
    tifffile.imwrite(
        path, pixels, tile=(64, 64), photometric="rgb", metadata=None, resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER", iccprofile=profile, **options,
    )  # fmt: skip
    return pixels


def test_pixels_look_as_the_profile_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    found = to_srgb(swapped_profile(), Path("a.svs"))(pixels)
    assert found.shape == pixels.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - pixels[..., ::-1]).max() <= 2
    same = to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), Path("a.svs"))(pixels)
    assert np.abs(same.astype(int) - pixels).max() <= 1
    assert to_srgb(swapped_profile(), Path("a.svs"))(pixels[:0]).shape == (0, 20, 30, 3)


@pytest.mark.parametrize("profile", [b"", b"no profile", swapped_profile()[:200]])
def test_a_damaged_profile_is_named(profile: bytes) -> None:
    with pytest.raises(InputError, match=r"(?s)a\.svs: its ICC profile cannot be applied: .*--icc"):
        to_srgb(profile, Path("a.svs"))


def test_profiles_of_other_colours_are_refused() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with pytest.raises(InputError, match="cannot be applied"):
        to_srgb(lab, Path("a.svs"))


@pytest.mark.parametrize("compression", [None, "jpeg"], ids=["openslide", "direct"])
def test_embeddings_are_of_those_colours(tmp_path: Path, compression: str | None) -> None:
    make_slide(tmp_path / "a.tif", swapped_profile(), compression)
    for name, icc in (("as_it_is", False), ("srgb", True)):
        embed_slide(
            tmp_path / "a.tif",
            MeanEncoder(),
            tmp_path / f"{name}.h5",
            EmbedConfig(tissue=False, icc=icc, overview=False),
        )
    with h5py.File(tmp_path / "as_it_is.h5") as file:
        stored, about = file["features"][:].reshape(-1, 16, 3), dict(file.attrs)
    with h5py.File(tmp_path / "srgb.h5") as file:
        converted = file["features"][:].reshape(-1, 16, 3)
        assert file.attrs["icc"] and len(file.attrs["slide_icc_sha256"]) == 64
    np.testing.assert_allclose(converted, stored[..., ::-1], atol=2)
    assert stored[..., 0].mean() > stored[..., 2].mean() + 40
    plans = [plan_of(MeanEncoder.spec, EmbedConfig(tissue=False, icc=icc), "") for icc in (False, True)]
    assert not differences(about, plans[0]) and differences(about, plans[1]) == ["icc False, now True"]
    assert not differences({name: value for name, value in about.items() if name != "icc"}, plans[0])


def test_a_slide_without_a_profile_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_slide(tmp_path / "a.tif", None)
    with caplog.at_level(logging.WARNING):
        embed_slide(tmp_path / "a.tif", MeanEncoder(), tmp_path / "o.h5", EmbedConfig(tissue=False, icc=True))
    assert "a.tif: it holds no ICC profile" in caplog.text


def test_ome_tiffs_profile_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        said = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        pixels = np.zeros((128, 128, 3), np.uint8)
        file.write(pixels, tile=(64, 64), photometric="rgb", metadata=said, iccprofile=swapped_profile())
    slide = open_slide(tmp_path / "a.ome.tif")
    slide.close()
    assert slide.icc_profile == swapped_profile()


def test_a_check_of_the_slide_applies_it_too(tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tif", swapped_profile())
    config = EmbedConfig(tissue=False, icc=True, overview=False)
    embed_slide(tmp_path / "a.tif", MeanEncoder(), tmp_path / "a.h5", config)
    found = check_slides(
        [read_features(tmp_path / "a.h5")], tmp_path, MeanEncoder(), most_tiles=8, min_cosine=None, outlines=None
    )
    assert found.cosine_median["a.h5"] == pytest.approx(1, abs=1e-6)
