"""What this machine is: processor features, cores, and the versions of what is installed."""

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

# Distributions whose versions decide what a bundle is.
DISTRIBUTIONS = (
    "atlas-edge",
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)
# What holds a library whose own distribution and module only stand for it: a kit brings the former alone.
_STANDS_FOR = {"tensorrt-rtx": "tensorrt-rtx-cu13-bindings"}
_HELD_IN = {"tensorrt_rtx": "tensorrt_rtx_bindings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor.

    Attributes:
        name: As the operating system gives it.
        cores: Physical cores that this process may use.
        avx2, avx512_vnni, avx_vnni, avx512_bf16, amx_int8, amx_bf16: Instruction sets that decide speed.
    """

    name: str
    cores: int
    avx2: bool
    avx512_vnni: bool
    avx_vnni: bool
    avx512_bf16: bool
    amx_int8: bool
    amx_bf16: bool

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16, and does not imitate it."""
        return self.avx512_bf16 or self.amx_bf16


def cpu() -> Cpu:
    """Read the processor's name and features."""
    name, flags = _name_and_flags()
    return Cpu(
        name=name,
        cores=usable_cores(),
        avx2="avx2" in flags,
        avx512_vnni="avx512_vnni" in flags or "avx512vnni" in flags,
        avx_vnni="avx_vnni" in flags,
        avx512_bf16="avx512_bf16" in flags or "avx512bf16" in flags,
        amx_int8="amx_int8" in flags,
        amx_bf16="amx_bf16" in flags,
    )


def usable_cores() -> int:
    """Physical cores, or fewer where the process is pinned to fewer, or its container gets less time than that."""
    logical, quota = logical_cores(), _cgroup_cores()
    cores = [psutil.cpu_count(logical=False) or logical, logical]
    return min(cores if quota is None else [*cores, max(int(quota), 1)])


def logical_cores() -> int:
    """Logical cores that this process is not kept from; macOS keeps it from none."""
    return os.cpu_count() or 1 if sys.platform == "darwin" else len(psutil.Process().cpu_affinity())


def peak_memory_bytes() -> int:
    """Most memory that this process has held, interpreter and libraries included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    else:
        import resource

        status = Path("/proc/self/status")
        if status.is_file():
            # Linux hands the parent's maximum on to a child in ru_maxrss; VmHWM starts anew with the program.
            found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
            if found is not None:
                return int(found[1]) * 1024
        # macOS counts bytes.
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def versions() -> dict[str, str]:
    """Versions of Python, the operating system and the distributions in `DISTRIBUTIONS` that are installed."""
    return system() | installed_versions(DISTRIBUTIONS)


def system() -> dict[str, str]:
    """Python's version, and which operating system on which kind of processor."""
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}


def installed_module(name: str) -> str | None:
    """The name to import a library by, or None where it is not installed. Imports nothing."""
    names = (name, _HELD_IN[name]) if name in _HELD_IN else (name,)
    return next((each for each in names if importlib.util.find_spec(each) is not None), None)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        for distribution in (_STANDS_FOR.get(name, name), name):
            with suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(distribution)
    return found


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processor time that control groups leave this process, in cores; None without a limit (docker --cpus sets one).

    Args:
        root: Where the control groups are mounted.
        own: The process's own place among them, a line each: `0::/docker/3f2a` in version 2.
    """
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        # A limit holds for all that is below it. Within a container the place may name what only the host sees.
        folder = top / place.strip("/")
        for group in (folder, *folder.parents[: len(Path(place.strip("/")).parts)]):
            limits += _quotas(group)
    return min(limits, default=None)


def _quotas(group: Path) -> list[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text(encoding="ascii") for name in names).split()
            return [int(quota) / int(period)] if quota not in ("max", "-1") else []
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return []


def _name_and_flags() -> tuple[str, frozenset[str]]:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        flags = fields.get("flags") or fields.get("Features") or ""
        return fields.get("model name", platform.processor()), frozenset(flags.split())
    return _asked_of_cpuinfo()


@cache
def _asked_of_cpuinfo() -> tuple[str, frozenset[str]]:
    # Its first answer takes a second.
    try:
        from cpuinfo import get_cpu_info  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return platform.processor(), frozenset()
    info = get_cpu_info()
    return str(info.get("brand_raw", platform.processor())), frozenset(map(str, info.get("flags", [])))
