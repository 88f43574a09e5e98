"""Features compared with a reference on tiles that are read anew, and two scans of one region."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.slides.synthetic import make_slide
from embed.conftest import make_mean_bundle, make_scan
from support import RunCommand

for module in ("openslide", "tifffile", "imagecodecs", "openvino"):
    pytest.importorskip(module)
h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, run_command: RunCommand) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    make_slide(folder / "slide.tif", 1500, 1200)
    bundle = make_mean_bundle(folder / "bundle")
    done = run_command("atlas-embed", folder / "slide.tif", "--bundle", bundle, "--out", folder / "slide.h5")
    assert done.returncode == 0, done.stderr
    return folder


def test_equal_features_pass_and_are_drawn(embedded: Path, tmp_path: Path, run_command: RunCommand) -> None:
    done = run_command(
        "atlas-bench", "slide-check", embedded / "slide.h5", "--slides", embedded, "--reference", embedded / "bundle",
        "--min-cosine", "0.999", "--outlines", tmp_path, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "PASS"
    assert report["agreement"]["identical"]
    assert report["agreement"]["cosine_p1_interval"]["unit"] == "group"
    assert report["tiles"] == {"slide.h5": 256}
    drawn = np.asarray(Image.open(tmp_path / "slide.png"))
    blue = (drawn == (0, 60, 255)).all(axis=2)
    assert drawn.shape == (1200, 1500, 3)  # no thumbnail is larger than level 0
    with h5py.File(embedded / "slide.h5") as file:
        x, y = next(pair for pair in file["coords"][:].tolist() if (pair[0] + pair[1]) // 32 % 2 == 0)
    assert blue[y, x : x + 32].all()


@pytest.mark.parametrize("fault", ["shifted", "features", "slightly", "mpp"])
def test_wrong_files_do_not_pass(embedded: Path, tmp_path: Path, run_command: RunCommand, fault: str) -> None:
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes((embedded / "slide.h5").read_bytes())
    with h5py.File(wrong, "r+") as file:
        if fault == "shifted":
            file["coords"][:, 0] = np.roll(file["coords"][:, 0], 40)
        elif fault == "features":
            file["features"][:] = np.random.default_rng(0).normal(size=file["features"].shape)
        elif fault == "slightly":
            file["features"][:] *= 1 + 1e-3 * np.random.default_rng(0).normal(size=file["features"].shape)
        else:
            file.attrs["slide_mpp"] = 0.25
    done = run_command(
        "atlas-bench", "slide-check", wrong, "--slides", embedded, "--reference", embedded / "bundle", "--min-cosine",
        "0.999",
    )  # fmt: skip
    assert done.returncode == (5 if fault == "mpp" else 3), done.stderr
    if fault == "slightly":  # well within the budget, on one slide
        said = " ".join(done.stderr.split())
        assert "INCONCLUSIVE" in said and "there are 1; below 36 nothing passes" in said
    assert "Traceback" not in done.stderr


def test_two_scans_of_one_region(tmp_path: Path, run_command: RunCommand) -> None:
    bundle = make_mean_bundle(tmp_path / "bundle")
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        slide = make_scan(tmp_path / f"{name}.tif", seed)
        out = tmp_path / f"{name}.h5"
        assert run_command("atlas-embed", slide, "--bundle", bundle, "--no-tissue", "--out", out).returncode == 0
    same = run_command("atlas-bench", "slide-pair", tmp_path / "one.h5", tmp_path / "two.h5", "--json")
    assert same.returncode == 0, same.stderr
    report = json.loads(same.stdout)
    assert report["positions"] == 600
    assert report["top_k"]["1"] == 1
    other = run_command("atlas-bench", "slide-pair", tmp_path / "one.h5", tmp_path / "other.h5", "--json")
    assert json.loads(other.stdout)["top_k"]["1"] < 0.1
    assert run_command("atlas-bench", "slide-pair", tmp_path / "one.tif", tmp_path / "two.h5").returncode == 5
