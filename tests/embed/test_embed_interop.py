"""What CLAM and TRIDENT would cut out of a slide by the attributes of its embeddings: what the encoder saw."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.jobs import leave_out_done
from atlas_edge.embed.output.attributes import slide_attributes
from atlas_edge.embed.resume.plan import attributes_of, differences, plan_of
from atlas_edge.embed.slide_files import SlideIdentity
from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.slides import open_slide, plan_grid
from embed.test_embed import MeanEncoder

h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
openslide = pytest.importorskip("openslide")


def pyramid(path: Path, mpp: float, downs: tuple[int, ...]) -> Path:
    """A slide of 1,024 x 768 px with levels that are so many times smaller."""
    pixels = np.random.default_rng(0).integers(0, 255, (768, 1024, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for number, down in enumerate(downs):
            scale = (1e4 / (mpp * down),) * 2
            writer.write(
                pixels[::down, ::down], tile=(64, 64), photometric="rgb", metadata=None, resolution=scale,
                resolutionunit="CENTIMETER", subfiletype=int(number > 0),
            )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("mpp", "downs", "tile_mpp", "level"),
    [
        (0.5, (1,), 0.5, 0),
        (0.25, (1,), 0.5, 0),
        (0.2201, (1,), 0.5, 0),
        (0.25, (1, 4), 0.5, 0),
        (0.25, (1, 4), 1.0, 1),
        (0.2201, (1, 2, 4), 0.5, 1),
        (0.2201, (1, 4), 1.0, 1),
    ],
)
def test_clam_and_trident_see_what_the_encoder_saw(
    tmp_path: Path, mpp: float, downs: tuple[int, ...], tile_mpp: float, level: int
) -> None:
    slide, out = pyramid(tmp_path / "s.tif", mpp, downs), tmp_path / "s.h5"
    embed_slide(slide, MeanEncoder(), out, EmbedConfig(tissue=False, tile_mpp=tile_mpp))
    with h5py.File(out) as file:
        about, said = dict(file.attrs), dict(file["coords"].attrs)
    seen_um = 32 * about["mpp"]
    assert said["patch_level"] == level
    # To within half a pixel of the level that is read.
    tolerance = 0.5 * mpp * downs[level] / seen_um + 1e-6

    # CLAM, Whole_Slide_Bag_FP: read_region(coord, patch_level, (patch_size, patch_size)).
    downsample = openslide.OpenSlide(slide).level_downsamples[said["patch_level"]]
    assert said["patch_size"] * downsample * mpp == pytest.approx(seen_um, rel=tolerance)
    # TRIDENT, WSIPatcher: source and target pixels are 10 / magnification µm.
    ratio = (10 / said["target_magnification"]) / (10 / said["level0_magnification"])
    assert round(said["patch_size"] * ratio) * mpp == pytest.approx(seen_um, rel=tolerance + 0.5 * mpp / seen_um)
    assert 10 / said["level0_magnification"] == pytest.approx(mpp, rel=1e-4)
    # TRIDENT on older files: from_legacy_coords.
    legacy = round(said["patch_size"] * downsample * said["custom_downsample"])
    assert legacy * mpp == pytest.approx(seen_um, rel=tolerance + 0.5 * mpp / seen_um)
    # Slide encoders such as TITAN.
    assert said["patch_size_level0"] * mpp == pytest.approx(seen_um, rel=0.5 * mpp / seen_um + 1e-6)
    assert said["overlap"] == 0


def test_an_auditor_finds_what_made_it(scan: Path, tmp_path: Path) -> None:
    config = EmbedConfig(min_tissue=0.2)
    embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", config, bundle_sha256="a" * 64)
    with h5py.File(tmp_path / "out.h5") as file:
        about = dict(file.attrs)
    status = scan.stat()
    expected = {
        "slide": "scan.tif",
        "slide_size_bytes": status.st_size,
        "slide_mtime_ns": status.st_mtime_ns,
        "bundle_sha256": "a" * 64,
        "min_tissue": 0.2,
        "tissue": True,
        "tile_mpp": 0.5,
        "tile_px": 32,
        "slide_mpp_y": pytest.approx(0.5),
        "encoder": "mean",
        "runtime": "numpy",
    }
    assert {name: about[name] for name in expected} == expected
    assert about["saturation_threshold"] > 0
    assert about["begun"].endswith("+00:00")
    assert about["atlas_edge_version"]
    assert len(about["slide_quickhash"]) == 64


def test_what_the_reader_knows_is_passed_on(scan: Path) -> None:
    slide = open_slide(scan)
    try:
        slide.bounds, slide.objective, slide.icc_sha256 = (10, 20, 300, 400), 40.0, "c" * 64
        grid = plan_grid(slide, None, tile_px=32, mpp=0.5)
        about = slide_attributes(slide, SlideIdentity(1, 2), None, grid)
    finally:
        slide.close()
    assert (about["slide_bounds"], about["slide_objective"]) == ((10, 20, 300, 400), 40.0)
    assert about["slide_icc_sha256"] == "c" * 64


def test_clams_training_loads_the_pt(scan: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config = EmbedConfig(tissue=False, overview=False)
    for name in ("pt_files/scan.pt", "h5_files/scan.h5"):
        embed_slide(scan, MeanEncoder(), tmp_path / name, config)
    # Generic_MIL_Dataset.__getitem__: torch.load(full_path), or both arrays of the h5.
    features = torch.load(tmp_path / "pt_files" / "scan.pt")
    with h5py.File(tmp_path / "h5_files" / "scan.h5") as file:
        assert np.array_equal(features.numpy(), file["features"][:]) and features.dtype == torch.float32
        coords = file["coords"][:]
    with zipfile.ZipFile(tmp_path / "pt_files" / "scan.pt") as file:
        assert np.array_equal(np.load(io.BytesIO(file.read("archive/coords.npy"))), coords)
    about = attributes_of(tmp_path / "pt_files" / "scan.pt")
    assert about is not None
    plan = plan_of(MeanEncoder.spec, config, "")
    assert not differences(about, plan)
    jobs = [(scan, tmp_path / "pt_files" / "scan.pt")]
    assert leave_out_done(jobs, lambda _: plan, overwrite=False, re_embed=False)[1]
    other = plan_of(MeanEncoder.spec, EmbedConfig(tissue=False, overlap=8), "")
    with pytest.raises(UsageError, match="overlap 0, now 8"):
        leave_out_done(jobs, lambda _: other, overwrite=False, re_embed=False)


def test_anndatas_own_layout(scan: Path, tmp_path: Path) -> None:
    config = EmbedConfig(tissue=False, overview=False)
    for form in ("h5", "h5ad"):
        embed_slide(scan, MeanEncoder(), tmp_path / f"scan.{form}", config)
    with h5py.File(tmp_path / "scan.h5") as plain, h5py.File(tmp_path / "scan.h5ad") as file:
        kinds = {"": "anndata", "X": "array", "obs": "dataframe", "obs/_index": "string-array", "obs/focus": "array"}
        kinds |= {"var": "dataframe", "obsm": "dict", "layers": "dict", "uns/atlas_edge": "dict"}
        kinds |= {"uns/atlas_edge/mpp": "numeric-scalar", "uns/atlas_edge/encoder": "string"}
        assert {name: file[name or "/"].attrs["encoding-type"] for name in kinds} == kinds
        every: list[str] = []
        file.visititems(lambda name, item: every.append(name) if "encoding-version" not in item.attrs else None)
        assert not every, "what does not say how it is written is not read"
        coords, x_y = plain["coords"][:], zip(file["obs/x"][:], file["obs/y"][:], strict=True)
        assert np.array_equal(file["X"][:], plain["features"][:])
        assert [name.decode() for name in file["obs/_index"][:]] == [f"{x}_{y}" for x, y in x_y]
        assert np.array_equal(file["obsm/spatial"][:], coords + 16)
        assert list(file["obs"].attrs["column-order"]) == ["x", "y", "focus"]
        assert np.array_equal(file["uns/slide_features"][:], plain["slide_features"][:])
        assert file["var/_index"].shape == (48,) and file["var"].attrs["column-order"].shape == (0,)
    about = attributes_of(tmp_path / "scan.h5ad")
    assert about is not None and not differences(about, plan_of(MeanEncoder.spec, config, ""))


def test_without_pytorch_no_pt_is_begun(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_edge.system.hardware.installed_module", lambda name: None if name == "torch" else name)
    with pytest.raises(RuntimeMissing, match=r"torch is not installed"):
        embed_slide(scan, MeanEncoder(), tmp_path / "scan.pt", EmbedConfig(tissue=False))
    assert RuntimeMissing.exit_code == 4 and not (tmp_path / "scan.pt").exists()
