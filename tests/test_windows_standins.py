"""The commands' main jobs, and what they rest on, where the process behaves as on Windows (see `windows`)."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("stands in for Windows on Linux", allow_module_level=True)

pytest.importorskip("torch")

from atlas_edge import bench, distill, export, open_bundle, quantize
from atlas_edge.bundle import verify_bundle
from atlas_edge.cli import run_app
from atlas_edge.errors import InputError
from atlas_edge.system.atomic import atomic_folder, write_atomic
from support import TINY_PX
from windows import printed, windows


def run(stage: object, *arguments: object) -> None:
    app = importlib.import_module(f"{stage.__name__}.cli").app  # type: ignore[attr-defined]
    assert run_app(app, [str(argument) for argument in arguments]) == 0, printed("stderr")


def test_the_stand_in_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "file"
    path.write_text("1")
    with windows(monkeypatch):
        with path.open("rb") as file:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fsync(file.fileno())
            for fails in (path.unlink, lambda: path.rename(tmp_path / "x"), lambda: path.parent.rename(tmp_path / "x")):
                with pytest.raises(PermissionError):
                    fails()
        mapped = np.memmap(path, np.uint8, "r")
        with pytest.raises(PermissionError):
            path.parent.rename(tmp_path / "x")
        del mapped
        path.parent.rename(tmp_path / "x")
        with pytest.raises(ImportError):
            import fcntl  # noqa: F401
        with pytest.raises(UnicodeEncodeError):
            print("→", flush=True)
        with atomic_folder(tmp_path / "bundle", marks=()) as partial:
            (partial / "file").write_text("1")
        write_atomic(tmp_path / "bundle" / "file", b"2")
        # Somebody uses the old folder: it stays, and the message says why.
        again = atomic_folder(tmp_path / "bundle", marks=("file",), overwrite=True)
        with (tmp_path / "bundle" / "file").open("rb"), pytest.raises(InputError, match="end the program"), again:
            pass
        assert (tmp_path / "bundle" / "file").read_bytes() == b"2"
    assert sys.modules["fcntl"]
    assert sys.modules["atlas_edge.system.atomic"].sys is sys  # type: ignore[attr-defined]


@pytest.mark.parametrize(("target", "precision"), [("openvino", "int8"), ("onnx", "fp32")])
def test_export_replaces_a_bundle(
    target: str,
    precision: str,
    bundle: Path,
    tiny_model: Path,
    tiles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    with windows(monkeypatch):
        encoder = open_bundle(out)
        encoder.encode(np.zeros((3, TINY_PX, TINY_PX, 3), np.uint8))
        encoder.close()
        run(
            export, tiny_model, "--target", target, "--precision", precision, "--calib", tiles, "--out", out,
            "--no-speed", "--calib-limit", 8, "--fit-limit", 8, "--eval-limit", 8, "--overwrite",
        )  # fmt: skip
        run(export, "verify", out)
        assert "intact" in printed()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert verify_bundle(out).created_utc > verify_bundle(bundle).created_utc


def test_bench(bundle: Path, tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report"
    with windows(monkeypatch):
        run(
            bench, "accuracy", bundle, "--reference", tiny_model, "--eval", tiles, "--limit", 16,
            "--stress-tiles", 0, "--report", report,
        )  # fmt: skip
        run(bench, "selftest", bundle, "--no-speed", "--out", tmp_path / "selftest")
    assert json.loads((report / "report.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "selftest.json", "selftest.md"]


def test_faces_and_servers_folders_are_replaced(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with windows(monkeypatch):
        for more in ([], ["--overwrite"]):
            run(export, "face", bundle, "--face", "nchw-float-0-1", "--out", tmp_path / "face", *more)
            run(export, "layout", bundle, "--layout", "ovms", "--out", tmp_path / "served", *more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face", "served"]
    assert {path.name for path in (tmp_path / "face").iterdir()} == {"face.json", "model.xml", "model.bin"}


def test_distill(tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "student"
    with windows(monkeypatch):
        run(
            distill, tiny_model, "--tiles", tiles, "--out", out, "--student", tiny_model, "--steps", 3, "--batch", 4,
            "--views", 1, "--warmup", 1, "--threads", 1,
        )  # fmt: skip
    assert (out / "model.safetensors").is_file()


def test_quantize(tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "quantized"
    with windows(monkeypatch):
        run(quantize, "recipe", "onnx", "--out", tmp_path / "recipe.json")
        run(quantize, "finetune", tiny_model, tiles, out, "--steps", 2, "--limit", 48)
        run(quantize, "sensitivity", tiny_model, tiles, "--out", tmp_path / "layers", "--count", 2, "--calib-limit", 8)
    assert (out / "quantized.onnx").is_file()
    assert (tmp_path / "layers" / "sensitivity.json").is_file()
