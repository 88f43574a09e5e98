"""Names of folders, files and tiles stay at home unless somebody asks for them."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from atlas_edge.cli import run_app
from atlas_edge.export.cli import app
from atlas_edge.unnamed import command_without_paths

PATIENT = "H21-12345-Muster"


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (("atlas-export", "hf-hub:org/name", "--precision", "int8"), ("hf-hub:org/name", "--precision", "int8")),
        (("atlas-export", "--calib", PATIENT, "--seed", "3"), ("--calib", "…", "--seed", "3")),
        (("atlas-export", f"--calib={PATIENT}", f"--other=/data/{PATIENT}"), ("--calib=…", "--other=…")),
        (("atlas-export", f"D:\\{PATIENT}", "--batch=1,8"), ("…", "--batch=1,8")),
        (("atlas-export", "--name", "y" * 300), ("--name", "y" * 300)),
        (("atlas-export", "rebuild", f"/data/{PATIENT}", "--strip"), ("rebuild", "…", "--strip")),
    ],
)
def test_a_command_line_without_paths(command: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert command_without_paths(command) == ("atlas-export", *kept)


@pytest.mark.parametrize("keep", [False, True])
def test_no_file_of_a_bundle_names_the_patient(
    keep: bool, tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / PATIENT
    shutil.copytree(tiles, study / PATIENT)
    for path in sorted((study / PATIENT).glob("*/**/*"), reverse=True):  # a folder a patient, and the name in its files
        path.rename(path.with_name(f"{PATIENT}-{path.name}"))
    out = tmp_path / "bundle"
    arguments = [
        str(tiny_model), "--target", "onnx", "--precision", "int8", "--calib", str(study / PATIENT), "--no-speed",
        "--calib-limit", "8", "--fit-limit", "8", "--eval-limit", "16", "--quiet",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["atlas-export", *arguments, "--out", str(out)])
    assert run_app(app, [*arguments, "--out", str(out), *["--keep-paths"] * keep]) == 0
    told = {path.name for path in out.iterdir() if PATIENT.encode() in path.read_bytes()}
    assert told == ({"manifest.json", "report.json", "report.html", "README.md"} if keep else set())
