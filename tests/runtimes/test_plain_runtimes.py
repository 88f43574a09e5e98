"""Who opens a model file without atlas-edge is told where it is wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_edge.bundle import read_manifest, write_manifest
from atlas_edge.cli import run_app
from atlas_edge.export.cli import app
from atlas_edge.export.report.model_card import without_atlas_edge
from atlas_edge.models import graph
from atlas_edge.runtimes import int8_sums
from atlas_edge.runtimes import plain as plain_runtimes
from atlas_edge.runtimes.plain import NOTICE_KEY, plain_runtime_notice
from atlas_edge.spec import Precision, Target
from support import command_environment


def test_only_int8_files_of_the_processor_need_it() -> None:
    told = [(t, p) for t in Target for p in Precision if plain_runtime_notice(t, p)]
    assert told == [(Target.ONNX, Precision.INT8), (Target.OPENVINO, Precision.INT8)]


def test_a_portable_file_needs_none_and_its_card_says_so(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any(plain_runtime_notice(target, Precision.INT8, portable=True) for target in Target)
    monkeypatch.setattr(int8_sums, "int8_sums_are_exact", lambda: False)
    shutil.copytree(bundle, tmp_path / "b")
    manifest = read_manifest(tmp_path / "b")
    execution = manifest.execution.model_copy(update={"portable": True})
    manifest = write_manifest(tmp_path / "b", manifest.model_copy(update={"execution": execution}))
    assert run_app(app, ["verify", str(tmp_path / "b")]) == 0
    said = capsys.readouterr()
    assert "openvino int8 portable, " in said.out and not said.err
    assert "any OpenVINO computes the same of it on any processor" in without_atlas_edge(manifest)


def test_onnx_carries_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:]))
    onnx.save(model, tmp_path / "a.onnx")
    graph.copy_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", notes={NOTICE_KEY: "careful"})
    (entry,) = onnx.load(tmp_path / "b.onnx").metadata_props
    assert (entry.key, entry.value) == (NOTICE_KEY, "careful")


@pytest.mark.parametrize("exact", [False, True])
def test_verify_warns_where_it_is_wrong(
    exact: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(int8_sums, "int8_sums_are_exact", lambda: exact)
    assert run_app(app, ["verify", str(bundle)]) == 0
    assert ("neither VNNI nor AMX" in " ".join(capsys.readouterr().err.split())) != exact


def test_without_openvino_the_processor_s_name_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bool:
        raise ImportError("openvino")

    monkeypatch.setattr(int8_sums, "int8_sums_are_exact", missing)
    for name, saturates in (("x86_64", None), ("AMD64", None), ("arm64", False), ("aarch64", False)):
        monkeypatch.setattr("platform.machine", lambda name=name: name)
        assert plain_runtimes.saturates_here() is saturates


def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    homes = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")}
    environment = command_environment(**homes)
    for name in ("ORT_DISABLE_TELEMETRY", "CI"):
        environment.pop(name, None)
    script = "import atlas_edge, onnxruntime; onnxruntime.get_available_providers()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*"))
