"""What is found on this machine: asked of the system, of the driver, and of OpenVINO itself."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import Target
from atlas_edge.system import hardware
from atlas_edge.system.gpu_probe import GpuProbe, probe_gpu
from atlas_edge.system.graphics import graphics
from atlas_edge.system.hardware import Cpu
from atlas_edge.system.topology import Topology, topology

HIDES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that keep OpenVINO from instructions that the processor has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoSays:
    """What OpenVINO says of the processor, and what came out when it was tried.

    Attributes:
        processor: Its name for it.
        formats: Number formats that it says to compute in: `FP32`, `INT8`, `BF16`, ...
        devices: All devices that it finds.
        exact_int8: Whether 8-bit products were added without loss.
    """

    processor: str
    formats: tuple[str, ...]
    devices: tuple[str, ...]
    exact_int8: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """This machine, as far as running encoders goes.

    Attributes:
        cpu: As the operating system lists it.
        gpus: What the NVIDIA driver says.
        graphics: Graphics cards and accelerators, see `system.graphics`.
        installed: Importable modules among those that were asked for.
        openvino: None where OpenVINO is not installed or broken.
        memory_bytes: In all.
        free_bytes: That programs can still have.
        all_cores: Physical cores, also those that this process may not use.
        topology: Kinds of cores, and of how many nodes.
        virtual: Whether the processor says that it is a virtual machine's.
        hidden: `VARIABLE=VALUE` that keeps OpenVINO from instructions; empty without one.
    """

    cpu: Cpu
    gpus: GpuProbe
    graphics: tuple[str, ...] = ()
    installed: frozenset[str] = frozenset()
    openvino: OpenVinoSays | None = None
    memory_bytes: int = 0
    free_bytes: int = 0
    all_cores: int = 0
    topology: Topology = field(default_factory=Topology)
    virtual: bool = False
    hidden: str = ""

    @property
    def integer(self) -> bool:
        """Whether INT8 pays on the processor."""
        cpu = self.cpu
        tried = self.openvino is not None and self.openvino.exact_int8
        return cpu.avx512_vnni or cpu.avx_vnni or cpu.amx_int8 or tried

    @property
    def bfloat(self) -> bool:
        """Whether the processor computes in BF16."""
        said = self.openvino is not None and "BF16" in self.openvino.formats
        return self.cpu.bfloat16 or said


def runtime_modules() -> dict[str, str]:
    """Module of each runtime -> the extra that brings it."""
    return {runtime.module: runtime.extra for runtime in map(runtime_of, Target)}


def look(tools: tuple[str, ...] = ()) -> Found:
    """Look at the processor, memory, GPUs, and what is installed.

    Args:
        tools: Modules to look for beside the runtimes.
    """
    installed = frozenset(filter(hardware.installed_module, (*tools, *runtime_modules())))
    memory = psutil.virtual_memory()
    return Found(
        cpu=hardware.cpu(),
        gpus=probe_gpu(),
        graphics=graphics(),
        installed=installed,
        openvino=_asked_of_openvino() if "openvino" in installed else None,
        memory_bytes=memory.total,
        free_bytes=memory.available,
        all_cores=psutil.cpu_count(logical=False) or 0,
        topology=topology(),
        virtual=_is_virtual(),
        hidden=", ".join(f"{name}={os.environ[name]}" for name in HIDES if name in os.environ),
    )


def _asked_of_openvino() -> OpenVinoSays | None:
    from atlas_edge.runtimes.devices.openvino import float_formats
    from atlas_edge.runtimes.int8_sums import int8_sums_are_exact
    from atlas_edge.runtimes.openvino_library import openvino_library

    try:
        core = openvino_library().Core()
        return OpenVinoSays(
            processor=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            formats=tuple(sorted(float_formats(core))),
            devices=tuple(core.available_devices),
            exact_int8=int8_sums_are_exact(),
        )
    except Exception:  # a broken installation raises anything, and is told by the runtime's own line
        return None


def _is_virtual() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and " hypervisor" in cpuinfo.read_text(encoding="utf-8", errors="replace")
