"""Which NVIDIA GPUs this machine can use, asked in a child process: a missing or broken driver can end a process."""

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from atlas_edge.system.child import run_module

TIMEOUT_S = 60.0
# Attributes of CUdevice_attribute.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device; `compute_capability` reads `8.9`."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProbe:
    """What the driver says.

    Attributes:
        driver: CUDA version that the driver supports (`13.0`), or None without a driver.
        gpus: Usable devices, in CUDA's order.
        problem: Why there is no usable GPU, in one line; empty when there is one.
    """

    driver: str | None
    gpus: tuple[Gpu, ...]
    problem: str


def probe_gpu(*, timeout_s: float = TIMEOUT_S) -> GpuProbe:
    """Ask the NVIDIA driver for its devices without loading it into this process."""
    try:
        child = run_module("atlas_edge.system.gpu_probe", timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return GpuProbe(driver=None, gpus=(), problem=f"the NVIDIA driver did not answer within {timeout_s:.0f} s")
    if child.returncode != 0:
        return GpuProbe(
            driver=None, gpus=(), problem=f"the NVIDIA driver ended the probing process (code {child.returncode})"
        )
    try:
        # Native libraries may print before it.
        found = json.loads(child.stdout.splitlines()[-1])
        gpus = tuple(Gpu(**gpu) for gpu in found["gpus"])
        return GpuProbe(driver=found["driver"], gpus=gpus, problem=found["problem"])
    except (IndexError, KeyError, TypeError, ValueError):
        return GpuProbe(driver=None, gpus=(), problem="the probing process gave no answer that can be read")


def ask_driver() -> GpuProbe:
    """Ask the driver in this process, through its C API. `probe_gpu` runs this in a child."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return GpuProbe(driver=None, gpus=(), problem=f"no NVIDIA driver is installed ({name} was not found)")
    status = cuda.cuInit(0)
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if status != 0:
        return GpuProbe(driver=driver, gpus=(), problem=f"the NVIDIA driver cannot be used (cuInit returned {status})")
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_describe(cuda, index) for index in range(count.value))
    return GpuProbe(driver=driver, gpus=gpus, problem="" if gpus else "the NVIDIA driver lists no GPU")


def _describe(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int(0)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(128)
    cuda.cuDeviceGetName(name, len(name), device)
    major, minor, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(ask_driver())))
