"""The two TensorRT libraries, and everything in which they differ.

Enterprise TensorRT (`tensorrt`) tunes kernels on the GPU that it builds on. TensorRT-RTX (`tensorrt_rtx`) writes an
engine for named GPU generations on any machine, with no GPU, and compiles the kernels where the engine is loaded.
Their Python APIs mirror each other, so one code path serves both; what differs is a field of `TensorRTLibrary`.
"""

import importlib
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Any, Literal

from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.spec import Target
from atlas_edge.system.hardware import installed_module, installed_versions

LibraryName = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTLibrary:
    """One of the two libraries.

    Attributes:
        module: Import name; see `installed_module`.
        title: Name in messages.
        target: Bundle target that it builds; the extra that installs it has the same name.
        minimum: Oldest version whose API has everything that is used here.
        builds_without_gpu: Engines are built for named compute capabilities rather than for the GPU of this machine.
        compute_capabilities: Names that it takes (`8.6`); empty where an engine fits the GPU it is built on.
        default_compute_capabilities: What is built for when nothing is said.
        timing_cache: Build-time measurements can be kept and reused.
        hardware_compatible: An engine can be built to run on later GPU generations, too.
        version_compatible: An engine can be built to run under later library versions, too.
        runtime_cache: Kernels compiled at load time can be kept and reused; CUDA graphs are taken by the library.
        engine_reads_on: Operating systems that share one engine file; empty: the one that it was built on.
    """

    module: LibraryName
    title: str
    target: Target
    minimum: tuple[int, int]
    builds_without_gpu: bool
    compute_capabilities: tuple[str, ...]
    default_compute_capabilities: tuple[str, ...]
    timing_cache: bool
    hardware_compatible: bool
    version_compatible: bool
    runtime_cache: bool
    engine_reads_on: str

    @property
    def install_hint(self) -> str:
        """Command that installs it."""
        return f"pip install 'atlas-edge[{self.target}]'"


# 10.13 is the first enterprise release that has every name used here (strongly typed networks are older);
# tests/export/tensorrt_api holds the recorded lists.
ENTERPRISE = TensorRTLibrary(
    module="tensorrt",
    title="TensorRT",
    target=Target.TENSORRT,
    minimum=(10, 13),
    builds_without_gpu=False,
    compute_capabilities=(),
    default_compute_capabilities=(),
    timing_cache=True,
    hardware_compatible=True,
    version_compatible=True,
    runtime_cache=False,
    engine_reads_on="",
)
RTX = TensorRTLibrary(
    module="tensorrt_rtx",
    title="TensorRT-RTX",
    target=Target.TENSORRT_RTX,
    minimum=(1, 7),
    builds_without_gpu=True,
    compute_capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    default_compute_capabilities=("8.6", "8.9", "12.0"),
    timing_cache=False,
    hardware_compatible=False,
    version_compatible=False,
    runtime_cache=True,
    engine_reads_on="Linux and Windows",
)
LIBRARIES: dict[str, TensorRTLibrary] = {library.module: library for library in (ENTERPRISE, RTX)}


def installed_version(library: TensorRTLibrary) -> str | None:
    """Version of the installed library, or None where it is not installed. Imports nothing."""
    module = installed_module(library.module)
    if module is None:
        return None
    distribution = library.module.replace("_", "-")
    found = installed_versions((distribution,)).get(distribution)
    return found or str(importlib.import_module(module).__version__)


def import_library(library: TensorRTLibrary) -> Any:
    """Import the library.

    Raises:
        RuntimeMissing: Not installed, its shared libraries cannot be loaded, or older than the oldest supported.
    """
    version = installed_version(library)
    if version is None:
        raise RuntimeMissing(f"{library.title} is not installed", hint=library.install_hint)
    check_version(library, version)
    try:
        return importlib.import_module(installed_module(library.module) or library.module)
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"{library.title} {version} is installed but cannot be loaded: {' '.join(str(error).split())}",
            # The extra is named as its library is; atlas-edge itself is on no index to be installed anew from.
            hint=f"pip install --force-reinstall {library.target}",
        ) from error


def check_version(library: TensorRTLibrary, version: str) -> None:
    """Refuse a version whose API lacks what is used here.

    Raises:
        RuntimeMissing: Too old.
    """
    if version_pair(version) < library.minimum:
        oldest = ".".join(map(str, library.minimum))
        raise RuntimeMissing(
            f"{library.title} {version} is installed, the oldest supported is {oldest}", hint=library.install_hint
        )


def version_pair(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as `11.4.0.106`.

    Raises:
        InputError: It does not begin with two numbers.
    """
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError) as error:
        raise InputError(f"version {version!r} does not begin with major.minor") from error


def collecting_logger(trt: Any, messages: MutableSequence[str]) -> Any:
    """A logger of TensorRT's that puts its errors, a line each, among `messages`."""

    class CollectingLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in {"INTERNAL_ERROR", "ERROR"}:
                messages.append(" ".join(message.split()))

    return CollectingLogger()
