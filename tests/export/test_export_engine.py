import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.bench.selftest import run_selftest
from atlas_edge.bundle import open_bundle, verify_bundle
from atlas_edge.errors import InputError
from atlas_edge.export.engine_graphs import engine_graphs
from atlas_edge.graph import export_onnx
from atlas_edge.models import load_model
from atlas_edge.quantize.fp16_range import check_half_range
from atlas_edge.spec import Precision

pytest.importorskip("tensorrt_rtx")
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--calib-limit", "16", "--fit-limit", "32", "--eval-limit", "32", "--no-speed", "--tile-fit", "resize")


@pytest.mark.parametrize(("precision", "beside", "gpus"), [("int8", True, "8.6 8.9 12.0"), ("fp8", True, "8.9 12.0")])
def test_an_engine_bundle_is_written_without_a_gpu(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path, precision: str, beside: bool, gpus: str
) -> None:
    out = tmp_path / "bundle"
    arguments = ("--target", "tensorrt", "--precision", precision, "--batch", "1,4,8", "--out", out, "--json")
    done = run_command("atlas-export", tiny_model, *arguments, *SMALL)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "cudaError" not in done.stderr
    manifest = verify_bundle(out)
    assert " ".join(manifest.execution.compute_capabilities) == gpus
    assert (out / "fp16" / "model.engine").is_file() is beside
    assert manifest.quantization is not None
    assert manifest.quantization["fp16_range"]["headroom"] > 4
    report = run_selftest(out / "onnx", speed=False)
    assert report.passed
    assert report.cases[precision].distance_when_made == pytest.approx(report.cases[precision].distance, abs=1e-5)
    tiles = np.zeros((2, 32, 32, 3), np.uint8)
    encoder = open_bundle(out / "fp16" / "onnx")
    assert np.isfinite(encoder.encode(tiles)).all()
    encoder.close()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--precision", "fp8", "--compute-capability", "8.6"), 2, "fp8 needs compute capability 8.9"),
        (("--precision", "fp16", "--compute-capability", "9.0"), 2, "takes no compute capability '9.0'"),
        (("--precision", "fp16", "--hardware-compatible"), 2, "has no --hardware-compatible"),
        (("--precision", "fp16", "--timing-cache", "file"), 2, "has no --timing-cache"),
    ],
)
def test_an_impossible_engine_is_refused_before_any_work(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    out = tmp_path / "bundle"
    done = run_command("atlas-export", tiny_model, "--target", "tensorrt-rtx", *options, "--out", out, *SMALL)
    assert done.returncode == code
    assert message in done.stderr
    assert "fix:" in done.stderr
    assert not out.exists()


def test_rebuild_answers_in_one_line(run_command: RunCommand, tmp_path: Path) -> None:
    done = run_command("atlas-export", "rebuild", tmp_path)
    assert done.returncode == 5
    assert "is no bundle" in done.stderr


def test_activations_beyond_fp16_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model))
    tiles = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    graph = export_onnx(model.module, model.spec, tmp_path / "fp32.onnx")
    found = check_half_range(graph, tiles)
    assert 0 < found.largest < 1000
    assert found.headroom == pytest.approx(65504 / found.largest)
    import torch

    with torch.no_grad():
        model.module.backbone.blocks[0].mlp.fc2.bias += 5e4
    big = export_onnx(model.module, model.spec, tmp_path / "big.onnx")
    with pytest.raises(InputError, match=r"reaches 5e\+04 on calibration tiles; FP16 ends at 65504"):
        engine_graphs(model.module, model.spec, big, [tiles], tmp_path, precision=Precision.FP16)
