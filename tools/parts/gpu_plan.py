"""What `gpu_check` measures on a machine, in which order, and what is missing there."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX, TensorRTLibrary, installed_version
from atlas_edge.spec import Precision
from atlas_edge.system.gpu_probe import GpuProbe

Kind = Literal["graph", "onnxruntime", "tensorrt", "torch"]
Way = Literal["", "compiled", "compiled, CUDA graph", "one tile", "one tile, CUDA graph", "again"]

FP32, FP16, BF16, INT8, FP8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8
_TITLES: Mapping[Kind, str] = {
    "graph": "graph",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "torch": "PyTorch",
}
# Seconds without which a step is not begun, and those after which it is ended; kernels are tuned in the longer ones.
_LEAST_S: Mapping[Kind, float] = {"graph": 10, "onnxruntime": 15, "tensorrt": 25, "torch": 15}
_MOST_S: Mapping[Kind, float] = {"graph": 150, "onnxruntime": 100, "tensorrt": 150, "torch": 100}
_COMPILING_S = 40.0, 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One measurement, made in a process of its own.

    Attributes:
        kind: A graph that is made on the processor, or the runtime that is measured.
        precision: Of the graph, or what PyTorch computes in.
        way: How it is run, where there is more than one way; `again` measures once more what was measured first.
    """

    kind: Kind
    precision: Precision
    way: Way = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{_TITLES[self.kind]} {self.precision.value}{self.way and f', {self.way}'}"

    @property
    def least_s(self) -> float:
        """Seconds without which it is not begun."""
        return _COMPILING_S[0] if self.way.startswith("compiled") else _LEAST_S[self.kind]

    @property
    def most_s(self) -> float:
        """Seconds after which it is ended."""
        return _COMPILING_S[1] if self.way.startswith("compiled") else _MOST_S[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What this machine has.

    Attributes:
        device: `cuda` or `cpu`.
        probe: What the NVIDIA driver says.
        tensorrt: The library whose engines run here.
        onnxruntime: ONNX Runtime has a provider for the device.
        torch: PyTorch computes on the device.
        missing: What is not here, each with what mends it.
    """

    device: Literal["cuda", "cpu"]
    probe: GpuProbe
    tensorrt: TensorRTLibrary | None
    onnxruntime: bool
    torch: bool
    missing: tuple[str, ...]


def look_around(device: Literal["cuda", "cpu"], probe: GpuProbe) -> Here:
    """Ask which runtimes can use the device.

    Args:
        device: What is measured.
        probe: From `probe_gpu`.
    """
    missing = []
    if device == "cuda" and not probe.gpus:
        missing.append(f"GPU: {probe.problem}: install NVIDIA's driver, or run this beside the card")
    library, why = _tensorrt(probe) if device == "cuda" else (None, "")
    if device == "cuda" and library is None:
        missing.append(f"TensorRT: {why}")
    provider = _has_provider("CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider")
    if not provider:
        package = "onnxruntime-gpu" if device == "cuda" else "onnxruntime"
        missing.append(f"ONNX Runtime: no provider for {device}: pip install {package}")
    computes, why = _torch(device)
    if not computes:
        missing.append(f"PyTorch: {why}")
    return Here(
        device=device, probe=probe, tensorrt=library, onnxruntime=provider, torch=computes, missing=tuple(missing)
    )


def steps(here: Here) -> list[Step]:
    """What is measured, the most telling first: where time runs out, the rest is left.

    FP16 is what a user would run, INT8 what is to be judged against it, and PyTorch what would be taken instead.
    """
    if here.device == "cpu":
        wanted = [
            Step(kind="graph", precision=FP32),
            Step(kind="torch", precision=FP32),
            Step(kind="onnxruntime", precision=FP32),
            Step(kind="graph", precision=INT8),
            Step(kind="onnxruntime", precision=INT8),
            Step(kind="torch", precision=BF16),
            Step(kind="torch", precision=FP32, way="compiled"),
        ]
    else:
        wanted = [
            *(Step(kind="graph", precision=precision) for precision in (FP32, FP16, INT8)),
            Step(kind="tensorrt", precision=FP16),
            Step(kind="torch", precision=FP32),
            Step(kind="tensorrt", precision=INT8),
            Step(kind="torch", precision=FP16),
            Step(kind="onnxruntime", precision=FP16),
            Step(kind="torch", precision=FP16, way="compiled"),
            Step(kind="tensorrt", precision=FP32),
            Step(kind="onnxruntime", precision=FP32),
            Step(kind="onnxruntime", precision=INT8),
            Step(kind="tensorrt", precision=FP16, way="one tile"),
            Step(kind="tensorrt", precision=FP16, way="one tile, CUDA graph"),
            Step(kind="torch", precision=FP16, way="compiled, CUDA graph"),
            Step(kind="torch", precision=BF16),
            Step(kind="graph", precision=BF16),
            Step(kind="tensorrt", precision=BF16),
            Step(kind="onnxruntime", precision=BF16),
            Step(kind="graph", precision=FP8),
            Step(kind="tensorrt", precision=FP8),
        ]
    can = {"graph": True, "tensorrt": here.tensorrt is not None, "torch": here.torch, "onnxruntime": here.onnxruntime}
    kept = [step for step in wanted if can[step.kind]]
    if here.tensorrt is RTX:
        # It takes CUDA graphs by itself.
        kept = [step for step in kept if not step.way.startswith("one tile")]
    if here.tensorrt is None:
        kept = [step for step in kept if step != Step(kind="graph", precision=FP8)]
    return kept


def _tensorrt(probe: GpuProbe) -> tuple[TensorRTLibrary | None, str]:
    for library in (ENTERPRISE, RTX):
        if installed_version(library) is None:
            continue
        capability = probe.gpus[0].compute_capability if probe.gpus else ""
        if not probe.gpus:
            return None, f"{library.title} is installed and has no GPU"
        if not library.compute_capabilities or capability in library.compute_capabilities:
            return library, ""
        return None, f"{library.title} has no engines for compute capability {capability}: {ENTERPRISE.install_hint}"
    return None, f"neither TensorRT nor TensorRT-RTX is installed: {RTX.install_hint}"


def _has_provider(name: str) -> bool:
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    return name in importlib.import_module("onnxruntime").get_available_providers()


def _torch(device: str) -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, "not installed: pip install 'atlas-edge[torch]'"
    torch = importlib.import_module("torch")
    if device == "cpu" or torch.cuda.is_available():
        return True, ""
    built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
    return False, f"{torch.__version__} {built} and finds no GPU"
