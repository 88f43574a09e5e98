import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from small_graph import write_small_graph

from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.export.engine import build as under_test
from atlas_edge.export.engine.build import build_engine, check_options, find_tensorrt
from atlas_edge.export.engine.child import EngineOptions
from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX, TensorRTLibrary
from atlas_edge.spec import Precision
from atlas_edge.system.gpu_probe import Gpu, GpuProbe

NO_GPU = GpuProbe(driver=None, gpus=(), problem="no NVIDIA driver is installed")
ONE_GPU = GpuProbe(
    driver="13.0", gpus=(Gpu(name="RTX 4070", compute_capability="8.9", memory_bytes=12 << 30),), problem=""
)


@pytest.fixture
def small_graph(tmp_path: Path) -> Path:
    return write_small_graph(tmp_path / "small.onnx")


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(under_test, "installed_version", lambda library: versions.get(library.module))


@pytest.mark.parametrize(
    ("asked", "versions", "probe", "chosen"),
    [
        (ENTERPRISE, {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1"}, ONE_GPU, "tensorrt"),
        (ENTERPRISE, {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1"}, NO_GPU, "tensorrt_rtx"),
        (ENTERPRISE, {"tensorrt": "10.13.3.9"}, ONE_GPU, "tensorrt"),
        (ENTERPRISE, {"tensorrt_rtx": "1.7.1"}, NO_GPU, "tensorrt_rtx"),
        (RTX, {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1"}, ONE_GPU, "tensorrt_rtx"),
    ],
)
def test_the_library_that_can_build_here_is_chosen_and_says_why(
    monkeypatch: pytest.MonkeyPatch, asked: TensorRTLibrary, versions: dict[str, str], probe: GpuProbe, chosen: str
) -> None:
    installed(monkeypatch, **versions)
    choice = find_tensorrt(asked, probe=probe)
    assert choice.library.module == chosen
    assert choice.version == versions[chosen]
    assert choice.reason


@pytest.mark.parametrize(
    ("asked", "versions", "message"),
    [
        (ENTERPRISE, {}, "neither TensorRT nor TensorRT-RTX is installed"),
        (RTX, {"tensorrt": "11.4.0"}, "TensorRT-RTX is not installed"),
        (ENTERPRISE, {"tensorrt": "11.4.0"}, "no NVIDIA driver"),
        (ENTERPRISE, {"tensorrt": "8.6.1"}, "the oldest supported is 10.13"),
    ],
)
def test_where_nothing_can_build_the_install_command_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: TensorRTLibrary, versions: dict[str, str], message: str
) -> None:
    installed(monkeypatch, **versions)
    probe = ONE_GPU if "8.6" in versions.get("tensorrt", "") else NO_GPU
    with pytest.raises(RuntimeMissing, match=message) as missing:
        find_tensorrt(asked, probe=probe)
    assert missing.value.exit_code == 4
    assert missing.value.hint is not None
    assert "pip install" in missing.value.hint


@pytest.mark.parametrize(
    ("library", "precision", "options", "message"),
    [
        (RTX, Precision.FP16, {"compute_capabilities": ["9.0"]}, "takes no compute capability '9.0'"),
        (RTX, Precision.FP8, {"compute_capabilities": ["8.6"]}, "fp8 needs compute capability 8.9"),
        (RTX, Precision.FP32, {"compute_capabilities": ["7.5"]}, "fp32 needs compute capability 8.0"),
        (RTX, Precision.FP16, {"hardware_compatible": True}, "has no --hardware-compatible"),
        (RTX, Precision.FP16, {"version_compatible": True}, "has no --version-compatible"),
        (RTX, Precision.FP16, {"timing_cache": Path("cache")}, "has no --timing-cache"),
        (ENTERPRISE, Precision.FP16, {"compute_capabilities": ["8.9"]}, "takes no --compute-capability"),
        (RTX, Precision.FP16, {"batch_profile": (4, 2, 8)}, "4,2,8 is not 1 <= min <= opt <= max"),
        (RTX, Precision.FP16, {"batch_profile": (0, 2, 8)}, "0,2,8 is not 1 <= min <= opt <= max"),
    ],
)
def test_an_option_that_the_library_lacks_is_refused(
    library: Any, precision: Precision, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        check_options(library, precision, EngineOptions(**options))
    assert refused.value.hint


def test_fp8_is_built_by_default_for_the_gpus_that_have_it() -> None:
    capabilities = check_options(RTX, Precision.FP8, EngineOptions())
    assert capabilities == ("8.9", "12.0")


def test_an_engine_is_built_without_a_gpu(small_graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = tmp_path / "small.engine"
    report = build_engine(
        small_graph,
        engine,
        library=RTX,
        precision=Precision.FP32,
        options=EngineOptions(compute_capabilities=("8.6", "12.0"), batch_profile=(1, 4, 8), batch_independent=True),
    )
    assert report.size_bytes == engine.stat().st_size > 1000
    assert report.compute_capabilities == ("8.6", "12.0")
    assert report.options == ("batch_independent",)
    assert report.layers >= 3
    assert report.build_seconds < 60
    assert report.graph.linears == 1


def test_the_parser_speaks_in_one_line_without_the_missing_driver(
    small_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(small_graph)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["tiles"], ["moved"], name="early", perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["moved"], ["embedding"], name="cast", to=TensorProto.FLOAT),
        ]
    )
    onnx.save(model, small_graph)
    # Our own rule would refuse it first: let the parser see it.
    monkeypatch.setattr(under_test, "check_graph", lambda *_, **__: None)
    with pytest.raises(InputError) as refused:
        build_engine(small_graph, tmp_path / "e", library=RTX, precision=Precision.FP32)
    assert "cannot parse node early (Transpose)" in refused.value.message
    assert "UInt8 but must have type Float" in refused.value.message
    for noise in ("cudaError", "\n", "_src/"):
        assert noise not in refused.value.message
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "e").exists()


def test_a_stripped_engine_without_its_gpu_is_refused(small_graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    if not NO_GPU.gpus and under_test.probe_gpu().gpus:
        pytest.skip("this machine has a GPU: a stripped engine can be built")
    with pytest.raises(RuntimeMissing, match="only beside the GPU"):
        build_engine(
            small_graph,
            tmp_path / "e",
            library=RTX,
            precision=Precision.FP32,
            options=EngineOptions(strip_weights=True),
        )


def test_a_fixed_batch_that_contradicts_the_profile_is_refused(small_graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(small_graph)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, small_graph)
    with pytest.raises(InputError, match="fixed batch of 4, the profile asks for 1,32,64"):
        build_engine(small_graph, tmp_path / "e", library=RTX, precision=Precision.FP32)
    build_engine(
        small_graph,
        tmp_path / "e",
        library=RTX,
        precision=Precision.FP32,
        options=EngineOptions(batch_profile=(4, 4, 4)),
    )


def test_a_library_that_ends_its_process_is_our_error(small_graph: Path, tmp_path: Path) -> None:
    absent = dataclasses.replace(RTX, module="tensorrt_absent")
    with pytest.raises(RuntimeMissing, match=r"ended with code 1 .*No module named 'tensorrt_absent'"):
        build_engine(small_graph, tmp_path / "e", library=absent, precision=Precision.FP32)


def test_a_build_that_takes_too_long_is_ended(small_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did not finish small\.onnx within 0 s"):
        build_engine(small_graph, tmp_path / "e", library=RTX, precision=Precision.FP32, timeout_s=0.01)
