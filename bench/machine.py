"""What a report says of the machine that it was made on."""

import platform
from dataclasses import dataclass

import psutil

from atlas_edge.system.hardware import cpu, installed_versions, logical_cores

_LIBRARIES = ("numpy", "openvino", "onnxruntime", "torch", "timm", "tensorrt", "tensorrt-rtx", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Hardware and software.

    Attributes:
        cpu: Model name.
        physical_cores: Physical cores, or None where the system hides them.
        logical_cores: Logical cores that this process may use.
        memory_bytes: Installed memory.
        system: Operating system.
        python: Version.
        gpus: Names of NVIDIA devices, where a driver answers.
        versions: Installed versions of the libraries that matter.
    """

    cpu: str
    physical_cores: int | None
    logical_cores: int
    memory_bytes: int
    system: str
    python: str
    gpus: tuple[str, ...]
    versions: dict[str, str]


def this_machine() -> Machine:
    """Read the machine's description."""
    return Machine(
        cpu=cpu().name,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=logical_cores(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        gpus=_gpu_names(),
        versions=installed_versions(_LIBRARIES),
    )


def _gpu_names() -> tuple[str, ...]:
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return tuple(str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i))) for i in range(count))
    except pynvml.NVMLError:
        return ()
