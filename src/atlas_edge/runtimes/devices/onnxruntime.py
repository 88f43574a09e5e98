"""Which execution provider of ONNX Runtime runs a graph: one that it was built with, or a plugin that pip installed."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_edge.errors import RuntimeMissing, UsageError

CPU = "CPUExecutionProvider"
# Other names of a provider, the short one of ONNX Runtime itself among them.
_ALIASES = {
    "dml": "directml",
    "gpu": "cuda",
    "rtx": "nvtensorrtrtx",
    "tensorrtrtx": "nvtensorrtrtx",
    "trt": "tensorrt",
}
_PLUGINS = {"openvino": "onnxruntime_ep_openvino", "nvtensorrtrtx": "onnxruntime_ep_nv_tensorrt_rtx"}
_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "directml": "onnxruntime-directml",
    "nvtensorrtrtx": "onnxruntime-ep-nv-tensorrt-rtx",
    "openvino": "onnxruntime-ep-openvino",
    "tensorrt": "onnxruntime-gpu",
}
_BY_NAME = frozenset({"coreml", "directml"})
# Providers that run on CUDA's devices.
_CUDA = frozenset({"cuda", "nvtensorrtrtx", "tensorrt"})
# Plugins by their name, with the module that has them: a name is taken once, also where the plugin finds no device.
_registered: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """How a session is opened.

    Attributes:
        name: ONNX Runtime's, such as `CUDAExecutionProvider`.
        gpu: CUDA's index of the GPU; None where it runs on something else.
        providers: For `InferenceSession`; empty where a plugin was added to the session's options.
    """

    name: str
    gpu: int | None = None
    providers: Sequence[Any] = field(default=())


def choose_provider(onnxruntime: Any, options: Any, device: str | None) -> Provider:
    """Prepare a session for a device.

    Args:
        onnxruntime: The module.
        options: `SessionOptions`; changed where the provider needs it.
        device: `cpu`, `cuda`, `cuda:1`, `tensorrt`, `directml`, `coreml`, `openvino`, `openvino:gpu`, `rtx`, or any
            provider of ONNX Runtime by its name, whatever its case; CUDA where it is, else the processor, when None.

    Raises:
        UsageError: Not the form of a device.
        RuntimeMissing: This ONNX Runtime has no such provider, or the provider no such device.
    """
    here = {_short(name): name for name in onnxruntime.get_available_providers()}
    if device is None:
        device = "cuda" if "cuda" in here else "cpu"
    named = re.fullmatch(r"([A-Za-z][\w -]*?)(?::(\w+))?", device.strip())
    if named is None:
        raise UsageError(f"--device {device}: not a device", hint="cpu, cuda, cuda:1, directml, openvino:gpu, rtx")
    kind, which = _short(named[1]), named[2]
    if kind in here:
        return _built_in(here[kind], kind, options, device, which)
    if kind in _PLUGINS:
        return _plugin(onnxruntime, options, kind, device, which)
    raise RuntimeMissing(
        f"--device {device}: this ONNX Runtime has no such provider; it has {', '.join(sorted(here))}",
        hint=f"pip install {_PACKAGES[kind]}" if kind in _PACKAGES else "name one of these",
    )


def accelerators() -> tuple[str, ...]:
    """Providers that this ONNX Runtime takes when they are named only: DirectML, CoreML; empty without ONNX Runtime."""
    try:
        import onnxruntime

        return tuple(kind for name in onnxruntime.get_available_providers() if (kind := _short(name)) in _BY_NAME)
    except Exception:  # a broken installation raises anything
        return ()


def _built_in(name: str, kind: str, options: Any, device: str, which: str | None) -> Provider:
    if which is not None and not which.isdigit():
        raise UsageError(f"--device {device}: {which} is no number of a device", hint=f"such as {kind}:0")
    if which is not None and kind not in _CUDA | {"directml"}:
        raise UsageError(f"--device {device}: {kind} has no numbered devices", hint=f"--device {kind}")
    if kind == "directml":
        # It refuses a session with either of them on.
        options.enable_mem_pattern = False
    index = int(which or 0)
    settings = {"device_id": str(index)} if kind in _CUDA | {"directml"} else {}
    last = [] if name == CPU else [CPU]
    return Provider(name=name, gpu=index if kind in _CUDA else None, providers=[(name, settings), *last])


def _plugin(onnxruntime: Any, options: Any, kind: str, device: str, which: str | None) -> Provider:
    try:
        package = importlib.import_module(_PLUGINS[kind])
        name, library = package.get_ep_name(), package.get_library_path()
    except ImportError as error:
        missing = f"--device {device}: the plugin of ONNX Runtime for it is not installed"
        raise RuntimeMissing(missing, hint=f"pip install {_PACKAGES[kind]}") from error
    except Exception as error:  # it looks for its libraries
        raise RuntimeMissing(
            f"--device {device}: {_PACKAGES[kind]} is broken: {error}", hint="install it again"
        ) from error
    try:
        known = any(found.ep_name == name for found in onnxruntime.get_ep_devices())
        if not known and _registered.get(name) is not onnxruntime:
            onnxruntime.register_execution_provider_library(name, library)
            _registered[name] = onnxruntime
        devices = [found for found in onnxruntime.get_ep_devices() if found.ep_name == name]
    except Exception as error:  # the library is loaded here
        raise RuntimeMissing(
            f"--device {device}: ONNX Runtime cannot load {_PACKAGES[kind]}: {' '.join(str(error).split())}",
            hint=f"pip install --upgrade onnxruntime {_PACKAGES[kind]}",
        ) from error
    chosen = [found for index, found in enumerate(devices) if which is None or _is(found, index, which)][:1]
    if not chosen:
        seen = f"{', '.join(map(_kind, devices))} only" if devices else "no device that it can use"
        raise RuntimeMissing(
            f"--device {device}: {_PACKAGES[kind]} finds {seen} here",
            hint="leave --device out: the bundle then runs on the processor",
        )
    options.add_provider_for_devices(chosen, {})
    return Provider(name=name, gpu=int(which) if kind in _CUDA and which else 0 if kind in _CUDA else None)


def _is(found: Any, index: int, which: str) -> bool:
    return which == str(index) or which.lower() == _kind(found).lower()


def _kind(found: Any) -> str:
    """`CPU`, `GPU` or `NPU`."""
    return str(dict(found.ep_metadata).get("ov_device", getattr(found.device.type, "name", found.device.type)))


def _short(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("executionprovider")
    return _ALIASES.get(letters, letters)
