"""Which device a bundle runs on: real ones where the runtime has them here, and fakes of those that it has not."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atlas_edge.bundle import open_bundle, read_manifest
from atlas_edge.errors import AtlasError, RuntimeMissing, UsageError
from atlas_edge.runtimes.devices import openvino as openvino_device
from atlas_edge.runtimes.devices.onnxruntime import choose_provider
from atlas_edge.runtimes.devices.openvino import find_device
from atlas_edge.spec import EncoderSpec
from support import RunCommand


class FakeCore:
    """What OpenVINO 2026.4 answers on a workstation with these devices."""

    def __init__(self, *devices: str) -> None:
        self.available_devices = list(devices)
        self._formats = {"CPU": ["FP32", "INT8"], "GPU": ["FP32", "FP16", "INT8"], "NPU": ["FP16", "INT8"]}

    def get_property(self, device: str, name: str) -> list[str]:
        assert name == "OPTIMIZATION_CAPABILITIES"
        return self._formats[device.partition(".")[0]]


@pytest.mark.parametrize(
    ("wanted", "name", "members"),
    [
        (None, "CPU", ("CPU",)),
        ("cpu", "CPU", ("CPU",)),
        ("gpu", "GPU", ("GPU",)),
        ("GPU.1", "GPU.1", ("GPU.1",)),
        ("auto", "AUTO:CPU,GPU.0,GPU.1,NPU", ("CPU", "GPU.0", "GPU.1", "NPU")),
        ("HETERO: NPU, CPU", "HETERO:NPU,CPU", ("NPU", "CPU")),
    ],
)
def test_openvino_s_devices_are_found_by_their_names(wanted: str | None, name: str, members: tuple[str, ...]) -> None:
    device = find_device(FakeCore("CPU", "GPU.0", "GPU.1", "NPU"), wanted)
    assert (device.name, device.members) == (name, members)


@pytest.mark.parametrize(
    ("wanted", "kind", "says"),
    [
        ("NPU", RuntimeMissing, "no NPU here; OpenVINO finds CPU, GPU"),
        ("GPU.1", RuntimeMissing, "no GPU.1 here"),
        ("AUTO:NPU,CPU", RuntimeMissing, "no NPU here"),
        ("CUDA", UsageError, "OpenVINO knows no CUDA"),
        ("CPU:GPU", UsageError, "take a list"),
    ],
)
def test_a_device_that_is_not_here_is_named(wanted: str, kind: type[AtlasError], says: str) -> None:
    with pytest.raises(kind, match=says) as raised:
        find_device(FakeCore("CPU", "GPU"), wanted)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("wanted", "precision", "found"),
    [
        ("CPU", "bf16", "f32"),
        ("GPU", "bf16", "f16"),
        ("GPU", "f32", "f32"),
        ("NPU", "f32", "f16"),
        ("AUTO:GPU,CPU", "bf16", "f32"),
    ],
)
def test_a_device_computes_in_a_format_that_it_has(wanted: str, precision: Any, found: str) -> None:
    core = FakeCore("CPU", "GPU", "NPU")
    assert find_device(core, wanted).precision(core, precision) == found


def test_the_processor_s_settings_reach_it_behind_a_virtual_device_and_no_other() -> None:
    core = FakeCore("CPU", "GPU")
    told = {"INFERENCE_NUM_THREADS": 1}
    assert find_device(core, "CPU").properties(told) == told
    assert find_device(core, "AUTO").properties(told) == {"DEVICE_PROPERTIES": {"CPU": told}}
    assert find_device(core, "GPU").properties(told) == {}


@pytest.mark.parametrize(
    ("exact", "wanted", "name", "told"),
    [
        (True, "AUTO", "AUTO:CPU,GPU", {}),
        (True, "HETERO:GPU,CPU", "HETERO:GPU,CPU", {}),
        (False, "CPU", "CPU", {"LP_TRANSFORMS_MODE": False}),
        (False, "GPU", "GPU", {}),
        (False, "AUTO", "GPU", {}),
        (False, "AUTO:CPU", "CPU", {"LP_TRANSFORMS_MODE": False}),
    ],
)
def test_int8_runs_where_it_comes_out_right(
    exact: bool, wanted: str, name: str, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_device, "int8_properties", lambda: {} if exact else {"LP_TRANSFORMS_MODE": False})
    device, properties = find_device(FakeCore("CPU", "GPU"), wanted).for_int8()
    assert (device.name, properties) == (name, told)


@pytest.mark.parametrize("device", ["AUTO", "HETERO:CPU", "HETERO"])
def test_a_virtual_device_of_openvino_embeds_the_same(device: str) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    from atlas_edge.runtimes.openvino import OpenVinoEncoder

    tiles = ops.parameter([-1, 8, 8, 3], np.uint8, name="tiles")
    values = ops.reshape(ops.convert(tiles, "f32"), np.array([-1, 192]), special_zero=False)
    weight = np.random.default_rng(0).normal(size=(192, 16)).astype(np.float32)
    model = openvino.Model([ops.tanh(ops.matmul(values, ops.constant(weight / 1e4), False, False))], [tiles], "small")
    spec = EncoderSpec(
        name="small", architecture="small", embed_dim=16, tile_px=8, mean=(0, 0, 0), std=(1, 1, 1), pooling="avg"
    )
    alone = OpenVinoEncoder(model, spec, batch=2)
    virtual = OpenVinoEncoder(model, spec, batch=2, device=device, threads=1)
    assert f" {device.partition(':')[0]}:CPU f32" in virtual.runtime
    pixels = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    # One tile, a batch, and several batches side by side.
    for count in (1, 2, 9):
        np.testing.assert_allclose(virtual.encode(pixels[:count]), alone.encode(pixels[:count]), rtol=1e-5)
    alone.close()
    virtual.close()


@dataclass
class FakeOptions:
    enable_mem_pattern: bool = True
    added: list[Any] = field(default_factory=list)

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        assert devices and isinstance(options, dict)
        self.added += devices


class FakeRuntime:
    """ONNX Runtime 1.32 with these providers built in, and plugins that find `devices`."""

    def __init__(self, *providers: str, devices: tuple[Any, ...] = ()) -> None:
        self.providers, self._devices, self.registered = providers, devices, dict[str, str]()

    def get_available_providers(self) -> list[str]:
        return [f"{name}ExecutionProvider" for name in self.providers]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert name not in self.registered, "ONNX Runtime refuses a name twice"
        self.registered[name] = path

    def get_ep_devices(self) -> list[Any]:
        return [device for device in self._devices if device.ep_name in self.registered]


@pytest.mark.parametrize(
    ("device", "name", "gpu", "settings"),
    [
        (None, "CUDA", 0, {"device_id": "0"}),
        ("cpu", "CPU", None, {}),
        ("CUDA:1", "CUDA", 1, {"device_id": "1"}),
        ("gpu", "CUDA", 0, {"device_id": "0"}),
        ("TensorRT", "Tensorrt", 0, {"device_id": "0"}),
        ("dml:1", "Dml", None, {"device_id": "1"}),
        ("direct-ml", "Dml", None, {"device_id": "0"}),
        ("CoreMLExecutionProvider", "CoreML", None, {}),
    ],
)
def test_a_provider_is_found_whatever_it_is_called(
    device: str | None, name: str, gpu: int | None, settings: dict[str, str]
) -> None:
    options = FakeOptions()
    runtime = FakeRuntime("Tensorrt", "CUDA", "Dml", "CoreML", "CPU")
    found = choose_provider(runtime, options, device)
    assert (found.name, found.gpu) == (f"{name}ExecutionProvider", gpu)
    assert found.providers[0] == (found.name, settings)
    assert list(found.providers[1:]) == ([] if name == "CPU" else ["CPUExecutionProvider"])
    assert options.enable_mem_pattern is (name != "Dml")


def plugin(monkeypatch: pytest.MonkeyPatch, module: str, ep_name: str) -> None:
    package = SimpleNamespace(get_ep_name=lambda: ep_name, get_library_path=lambda: f"{module}.so")
    monkeypatch.setitem(sys.modules, module, package)


def ep_device(ep_name: str, kind: str, **metadata: str) -> Any:
    return SimpleNamespace(
        ep_name=ep_name, ep_metadata=metadata, device=SimpleNamespace(type=SimpleNamespace(name=kind))
    )


def test_a_plugin_s_device_is_found_by_kind_or_number(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "OpenVINOExecutionProvider"
    plugin(monkeypatch, "onnxruntime_ep_openvino", name)
    devices = tuple(ep_device(name, kind, ov_device=kind) for kind in ("CPU", "GPU"))
    runtime = FakeRuntime("CPU", devices=devices)
    for device, expected in (("openvino", 0), ("openvino:gpu", 1), ("OpenVINO:1", 1)):
        options = FakeOptions()
        found = choose_provider(runtime, options, device)
        assert (found.name, found.gpu, list(found.providers)) == (name, None, [])
        assert options.added == [devices[expected]]
    with pytest.raises(RuntimeMissing, match="finds CPU, GPU only"):
        choose_provider(runtime, FakeOptions(), "openvino:npu")
    without = FakeRuntime("CPU")
    for device in ("openvino", "openvino:cpu"):
        with pytest.raises(RuntimeMissing, match="no device that it can use"):
            choose_provider(without, FakeOptions(), device)


def test_a_plugin_for_nvidia_says_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NvTensorRTRTXExecutionProvider"
    plugin(monkeypatch, "onnxruntime_ep_nv_tensorrt_rtx", name)
    devices = (ep_device(name, "GPU"), ep_device(name, "GPU"))
    for device, expected in (("rtx", 0), ("nv-tensorrt-rtx:1", 1), ("TensorRT-RTX", 0)):
        options = FakeOptions()
        assert choose_provider(FakeRuntime("CPU", devices=devices), options, device).gpu == expected
        assert options.added[0] is devices[expected]


@pytest.mark.parametrize(
    ("device", "kind", "says"),
    [
        ("cuda", RuntimeMissing, "no such provider; it has azure, cpu"),
        ("npu", RuntimeMissing, "no such provider"),
        ("cpu:1", UsageError, "no numbered devices"),
        ("", UsageError, "not a device"),
        ("cuda:0:1", UsageError, "not a device"),
    ],
)
def test_a_provider_that_is_not_here_is_named(device: str, kind: type[AtlasError], says: str) -> None:
    with pytest.raises(kind, match=says):
        choose_provider(FakeRuntime("Azure", "CPU"), FakeOptions(), device)


def test_a_provider_that_does_not_start_is_no_silent_processor(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    class Session:
        """ONNX Runtime warns, and takes the processor, where CUDA's libraries are missing."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="tiles", shape=["B", spec.tile_px, spec.tile_px, 3])]

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name="embedding", shape=["B", spec.embed_dim])]

    spec = read_manifest(bundle).encoder
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(RuntimeMissing, match="could not start CUDAExecutionProvider"):
        OnnxEncoder(Path("x.onnx"), spec, device="cuda")
    assert OnnxEncoder(Path("x.onnx"), spec).capabilities.gpu is None


def test_commands_take_a_device(bundle: Path, run_command: RunCommand, tmp_path: Path) -> None:
    done = run_command("atlas-bench", "selftest", bundle, "--no-speed", "--device", "auto", "--out", tmp_path / "auto")
    assert done.returncode == 0, done.stderr
    # Where 8-bit sums saturate, the processor is named instead.
    assert "CPU" in (tmp_path / "auto.json").read_text()
    for device, code in (("npu", 4), ("abacus", 2)):
        done = run_command("atlas-bench", "selftest", bundle, "--device", device, "--out", tmp_path / "none")
        assert done.returncode == code and f"--device {device}" in done.stderr, done.stderr


def test_a_cache_that_can_be_no_folder_is_said(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot be a folder"):
            open_bundle(bundle, cache_dir=place)
    open_bundle(bundle, cache_dir=tmp_path / "new" / "cache").close()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("device", "kind"), [("abacus", UsageError), ("cuda", RuntimeMissing)])
def test_pytorch_refuses_a_device_in_one_line(tiny_model: Path, device: str, kind: type[AtlasError]) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    from atlas_edge.models.load import load_encoder

    with pytest.raises(kind, match=f"--device {device}"):
        load_encoder(str(tiny_model), device=device)
