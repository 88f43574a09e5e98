"""`--target auto`: what can be built and passes goes into one package; what cannot is told."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from atlas_edge.bundle import open_bundle
from atlas_edge.cli import run_app
from atlas_edge.errors import GateFailed, RuntimeMissing, UsageError
from atlas_edge.export import pipeline
from atlas_edge.export.backends.onnx import BACKEND as ONNX
from atlas_edge.export.backends.openvino import BACKEND as OPENVINO
from atlas_edge.export.backends.tensorrt import ENTERPRISE_BACKEND, RTX_BACKEND
from atlas_edge.export.cli import app
from atlas_edge.export.packing import auto
from atlas_edge.export.packing.auto import auto_configs, export_package
from atlas_edge.export.steps import Steps
from atlas_edge.package import choice as remembering
from atlas_edge.package.manifest import VARIANTS, read_package
from atlas_edge.spec import Precision


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer variants, and a library that is not here."""
    monkeypatch.setattr(OPENVINO, "packaged", (Precision.FP32, Precision.BF16), raising=False)
    monkeypatch.setattr(ONNX, "packaged", (Precision.FP16,), raising=False)
    monkeypatch.setattr(ONNX, "packaged_portable", (), raising=False)

    def missing(*_: object) -> None:
        raise RuntimeMissing("tensorrt_rtx is not installed", hint="pip install it")

    monkeypatch.setattr(RTX_BACKEND, "check", missing, raising=False)


def quiet(_: str) -> Steps:
    return Steps(Console(file=io.StringIO()), pipeline.STEPS)


def test_what_passes_is_packed_and_what_does_not_is_told(
    few: None, tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real_open, real_gate = auto.open_tile_sets, auto.gate_line

    def counted(config: auto.ExportConfig) -> object:
        opened.append(1)
        return real_open(config)

    monkeypatch.setattr(auto, "open_tile_sets", counted)
    monkeypatch.setattr(pipeline, "open_tile_sets", counted)
    # FP16 misses its gate, whatever it does.
    missed = property(lambda result: result.manifest.precision is not Precision.FP16)
    monkeypatch.setattr(pipeline.ExportResult, "gate_open", missed)
    monkeypatch.setattr(auto, "gate_line", lambda result: f"{real_gate(result)}, as the test wants it")
    configs = auto_configs(model=str(tiny_model), calib=str(tiles), max_drop_pp=50.0, speed=False)
    assert list(configs) == ["tensorrt-rtx-int8", "openvino-fp32", "openvino-bf16", "onnx-fp16"]
    out = tmp_path / "package"
    made = export_package(configs, out, steps=quiet, command=("atlas-export",))
    assert len(opened) == 1
    package = read_package(out)
    assert [variant.name for variant in package.variants] == ["openvino-fp32", "openvino-bf16"]
    # The same graph, computed in another precision.
    assert package.variants[1].model_in == "openvino-fp32" and made.packed.saved_bytes > 0
    told = {one.name: one.reason for one in package.left_out}
    assert told["tensorrt-rtx-int8"] == "tensorrt_rtx is not installed"
    assert told["onnx-fp16"].startswith("gate: ") and "`onnx-fp16`" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / VARIANTS).read_text()
    monkeypatch.setattr(remembering, "user_cache", lambda: tmp_path / "cache")
    encoder = open_bundle(out / "openvino-bf16")
    assert encoder.runtime.startswith("OpenVINO")
    encoder.close()


def test_nothing_that_passes_is_no_package(
    few: None, tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.ExportResult, "gate_open", property(lambda _: False))
    monkeypatch.setattr(OPENVINO, "packaged", (Precision.FP32,), raising=False)
    monkeypatch.setattr(ONNX, "packaged", (), raising=False)
    configs = auto_configs(model=str(tiny_model), calib=str(tiles), max_drop_pp=0.0, speed=False)
    with pytest.raises(GateFailed):
        export_package(configs, tmp_path / "package", steps=quiet, command=())
    configs = auto_configs(model="atlas9")
    with pytest.raises(UsageError, match="atlas9"):
        export_package(configs, tmp_path / "package", steps=quiet, command=())
    assert not list(tmp_path.iterdir())


def test_an_option_of_one_kind_of_variant_leaves_the_others_alone() -> None:
    configs = auto_configs(model="atlas2-s", portable=True, quantize_attention=True, seed=3)
    assert [name for name, config in configs.items() if config.portable] == ["openvino-int8", "onnx-int8"]
    assert [name for name, config in configs.items() if config.quantize_attention] == ["tensorrt-rtx-int8"]
    assert {config.seed for config in configs.values()} == {3}
    merging = auto_configs(model="atlas2-s", merge_tokens=1.2)
    integer = [name for name, config in merging.items() if config.precision is Precision.INT8]
    assert [name for name, config in merging.items() if config.merge_tokens] == integer and len(integer) == 4


def test_a_package_has_the_form_that_is_fast_without_vnni() -> None:
    configs = auto_configs(model="atlas2-s")
    assert [name for name, config in configs.items() if config.portable] == ["onnx-int8-portable"]
    assert configs["onnx-int8-portable"].precision is Precision.INT8 and "onnx-int8" in configs


def test_engines_that_fit_one_gpu_only_are_no_variants() -> None:
    assert RTX_BACKEND.packaged == (Precision.INT8,) and ENTERPRISE_BACKEND.packaged == ()


def test_on_the_command_line(few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "package"
    assert run_app(app, ["--target", "auto", "--out", str(out), "--dry-run", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["variants"] == ["openvino-fp32", "openvino-bf16", "onnx-fp16"]
    assert "left out: tensorrt-rtx-int8: tensorrt_rtx is not installed" in printed.err
    assert run_app(app, ["--target", "auto", "--dry-run"]) == 0
    assert "would build" in (said := capsys.readouterr().err) and "bundles/atlas2-demo-package" in said
    assert run_app(app, ["--target", "auto", "--precision", "int8"]) == 2
    assert "leave --precision out" in capsys.readouterr().err
    assert run_app(app, ["--target", "autp", "--precision", "int8"]) == 2
    assert (
        "'autp' is none of auto, onnx, openvino, tensorrt, tensorrt-rtx. Did you mean auto?" in capsys.readouterr().err
    )
    assert run_app(app, ["--target", "auto", "--batch", "1,8,32"]) == 2
    assert "TensorRT's" in capsys.readouterr().err
