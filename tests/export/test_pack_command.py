"""`atlas-export pack`, and what the other commands say of a package."""

import json
from pathlib import Path

import pytest

from atlas_edge.bundle import write_manifest
from atlas_edge.cli import run_app
from atlas_edge.errors import UsageError
from atlas_edge.export.cli import app
from atlas_edge.export.rebuild import rebuild_bundle
from atlas_edge.spec import Precision, Target
from packages import make_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("bundles")
    made = [
        make_bundle(folder / "eight", Target.OPENVINO, Precision.INT8, model=b"eight"),
        make_bundle(folder / "half", Target.OPENVINO, Precision.BF16),
        make_bundle(folder / "full", Target.OPENVINO, Precision.FP32),
    ]
    return [str(path) for path in made]


def test_a_package_is_packed_verified_and_inspected(
    bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "package"
    assert run_app(app, ["pack", *bundles, "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    variants = json.loads(printed.out)["variants"]
    assert [variant["name"] for variant in variants] == ["openvino-fp32", "openvino-bf16", "openvino-int8"]
    assert variants[1]["model_in"] == "openvino-fp32"
    assert f"package: {out}: 3 variants" in printed.err and "once for two" in printed.err
    assert run_app(app, ["verify", str(out)]) == 0
    assert "intact. tiny, 3 variants (openvino-fp32, openvino-bf16, openvino-int8)" in capsys.readouterr().out
    assert run_app(app, ["verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["sha256"] == "a" * 64
    assert run_app(app, ["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"][2]["size_bytes"] > 5000
    assert run_app(app, ["inspect", str(out)]) == 0
    assert "openvino-bf16" in capsys.readouterr().err
    assert "- `" not in (out / "README.md").read_text() and "| `openvino-int8` |" in (out / "README.md").read_text()
    assert run_app(app, ["pack", *bundles, "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run_app(app, ["pack", bundles[0], "--out", str(out), "--overwrite"]) == 0
    (out / "openvino-int8" / "weights.bin").write_bytes(b"x")
    assert run_app(app, ["verify", str(out)]) == 5
    assert "weights.bin has 1 bytes" in capsys.readouterr().err


def test_fp16_inside_an_engine_s_bundle_is_a_variant_and_a_variant_is_not_rebuilt_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = make_bundle(tmp_path / "engine", Target.TENSORRT_RTX, Precision.INT8)
    inner = make_bundle(outer / "fp16", Target.TENSORRT_RTX, Precision.FP16, model=b"half")
    (inner / "selftest.safetensors").unlink()
    from atlas_edge.bundle import read_manifest

    for folder in (inner, outer):
        write_manifest(folder, read_manifest(folder))
    out = tmp_path / "package"
    assert run_app(app, ["pack", str(outer), "--out", str(out), "--json"]) == 0
    names = [variant["name"] for variant in json.loads(capsys.readouterr().out)["variants"]]
    assert names == ["tensorrt-rtx-int8/fp16", "tensorrt-rtx-int8"]
    assert run_app(app, ["verify", str(out)]) == 0
    with pytest.raises(UsageError, match="would not fit it any more"):
        rebuild_bundle(out / "tensorrt-rtx-int8")
