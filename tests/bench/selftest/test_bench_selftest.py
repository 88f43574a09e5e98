import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.selftest import run as under_test
from atlas_edge.bench.selftest.rows import selftest_rows
from atlas_edge.bench.selftest.run import SELFTEST_FILE, run_selftest, selftest_tiles, write_selftest
from atlas_edge.bundle import write_manifest
from atlas_edge.encoder import Capabilities, Encoder
from atlas_edge.errors import ChecksumError, InputError, RuntimeMissing
from atlas_edge.manifest import Execution
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.torch import TorchEncoder
from atlas_edge.spec import Precision, Target
from bundles import plain_manifest


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def graph(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(model.module, model.spec, tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture
def bundle(model: LoadedModel, graph: Path, tmp_path: Path) -> Path:
    """An ONNX bundle with its selftest."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph.read_bytes())
    write_selftest(folder, TorchEncoder(model.module, model.spec))
    write_manifest(folder, plain_manifest(model))
    return folder


def test_an_onnx_bundle_passes_where_it_was_made(bundle: Path) -> None:
    report = run_selftest(bundle, rounds=2)
    case = report.cases["fp32"]
    assert report.passed
    assert case.distance < 1e-5
    assert report.speed is not None
    rows = selftest_rows(report)
    assert rows[0].title.endswith("PASS") and "synthetic" in rows[0].notes[0]


def test_it_needs_no_more_than_a_workstation_has(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scipy", "sklearn", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run_selftest(bundle, rounds=2).passed


def test_an_openvino_bundle_passes(model: LoadedModel, graph: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(str(graph)), str(tmp_path / "model.xml"), compress_to_fp16=False)
    write_selftest(tmp_path, TorchEncoder(model.module, model.spec))
    write_manifest(tmp_path, plain_manifest(model, target=Target.OPENVINO, model_file="model.xml"))
    report = run_selftest(tmp_path, speed=False)
    assert report.passed
    assert report.keep == "fp32: the only one that passes"


class Distorted:
    """An encoder that is off by a fixed vector."""

    capabilities = Capabilities()

    def __init__(self, encoder: Encoder, amount: float) -> None:
        self.spec, self.runtime, self._encoder, self._amount = encoder.spec, "distorted", encoder, amount

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = self._encoder.encode(tiles)
        found[:, ::2] += self._amount * np.abs(found).mean()
        return found

    def close(self) -> None:
        self._encoder.close()


@pytest.mark.parametrize(("amount", "passed"), [(0.0, True), (0.5, False), (float("nan"), False)])
def test_an_engine_that_computes_something_else_fails(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, amount: float, passed: bool
) -> None:
    real = under_test.open_bundle
    monkeypatch.setattr(under_test, "open_bundle", lambda folder, **_: Distorted(real(folder), amount))
    report = run_selftest(bundle, speed=False)
    assert report.passed is passed
    assert report.cases["fp32"].finite is not np.isnan(amount)


def test_a_quantized_bundle_is_judged_by_what_it_was_where_it_was_made(
    model: LoadedModel, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(graph.read_bytes())
    exact = OnnxEncoder(graph, model.spec)
    write_selftest(tmp_path, exact, deployed=Distorted(exact, 0.3))
    write_manifest(tmp_path, plain_manifest(model, precision=Precision.INT8))
    real = under_test.open_bundle
    for amount, passed in ((0.3, True), (1.0, False)):
        monkeypatch.setattr(under_test, "open_bundle", lambda folder, off=amount, **_: Distorted(real(folder), off))
        report = run_selftest(tmp_path, speed=False)
        assert report.passed is passed
        assert report.cases["int8"].distance_when_made == pytest.approx(
            report.cases["int8"].distance if passed else report.cases["int8"].distance_when_made
        )


def test_fp16_beside_int8_is_measured_and_the_faster_one_named(model: LoadedModel, graph: Path, tmp_path: Path) -> None:
    inner = tmp_path / "fp16"
    inner.mkdir()
    for folder, precision in ((inner, Precision.FP16), (tmp_path, Precision.INT8)):
        (folder / "model.onnx").write_bytes(graph.read_bytes())
        if folder == tmp_path:
            write_selftest(folder, TorchEncoder(model.module, model.spec))
        write_manifest(folder, plain_manifest(model, precision=precision))
    report = run_selftest(tmp_path, rounds=3)
    assert list(report.cases) == ["int8", "fp16"]
    assert report.speed is not None
    said = []
    for low in (1.1, 0.9):
        ratio = Interval(estimate=1.2, low=low, high=1.3, units=3, unit="round")
        encoders = {"int8": replace(report.speed.encoders["int8"], throughput_ratio=ratio)}
        said.append(under_test._keep(report.cases, replace(report.speed, encoders=encoders)))
    assert said == [
        "int8: 1.20x the throughput of fp16 (1.10-1.30)",
        "fp16: int8 is not faster here (1.20x, 0.90-1.30) and costs accuracy",
    ]


def test_a_bundle_without_a_selftest_or_with_other_tiles_is_refused(
    bundle: Path, model: LoadedModel, graph: Path
) -> None:
    tiles = selftest_tiles(model.spec)
    write_selftest(bundle, TorchEncoder(model.module, model.spec), 255 - tiles)
    with pytest.raises(InputError, match="differ from those of the bundle by"):
        run_selftest(bundle, speed=False)
    (bundle / SELFTEST_FILE).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        run_selftest(bundle, speed=False)
    (bundle / SELFTEST_FILE).unlink()
    with pytest.raises(InputError, match=r"carries no selftest\.safetensors"):
        run_selftest(bundle, speed=False)


def test_a_tampered_bundle_is_not_run(bundle: Path) -> None:
    path = bundle / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ChecksumError):
        run_selftest(bundle, speed=False)


def test_an_engine_without_a_gpu_leaves_with_exit_code_4(bundle: Path, model: LoadedModel) -> None:
    (bundle / "model.engine").write_bytes(b"engine")
    engine = plain_manifest(model, target=Target.TENSORRT_RTX, model_file="model.engine", precision=Precision.FP16)
    write_manifest(
        bundle,
        engine.model_copy(update={"execution": Execution(model_file="model.engine", fallback_file="model.onnx")}),
    )
    from atlas_edge.system.gpu_probe import probe_gpu

    if probe_gpu().gpus:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeMissing, match="holds an engine for a GPU"):
        run_selftest(bundle, speed=False)
