"""Whether an engine fits this workstation: its GPU, its operating system, its TensorRT. Checked before it is loaded."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.tensorrt_library import LIBRARIES, TensorRTLibrary
from atlas_edge.system.gpu_probe import Gpu, GpuProbe

FALLBACK_FOLDER = "onnx"
HARDWARE_COMPATIBLE, VERSION_COMPATIBLE = "hardware_compatible", "version_compatible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The GPU that the engine will run on, with its CUDA index."""

    device: int
    gpu: Gpu


def library_of(manifest: Manifest) -> TensorRTLibrary:
    """The library that built a bundle's engine."""
    return LIBRARIES[manifest.execution.engine_library or manifest.target.value.replace("-", "_")]


def check_fit(folder: Path, manifest: Manifest, *, version: str, probe: GpuProbe, device: str | None = None) -> Fit:
    """Find the GPU for an engine, or say what it was built for.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        version: Version of the installed library (`library_of`).
        probe: What the driver says.
        device: `cuda:1`, `1`, or `cuda` for any; the first that fits when None.

    Raises:
        UsageError: `device` has not that form.
        RuntimeMissing: No usable GPU (names the fallback in the bundle), or another GPU generation, operating system
            or library version than the engine was built for (names the command that rebuilds it).
    """
    only = _index(device)
    if not probe.gpus:
        raise RuntimeMissing(
            f"{folder} holds an engine for a GPU, and {probe.problem}", hint=fallback_hint(folder, manifest)
        )
    library = library_of(manifest)
    built = built_for(manifest)
    mismatch = _operating_system(manifest, library) or _version(manifest, library, version)
    if mismatch:
        raise RuntimeMissing(f"{folder} was built for {built}; {mismatch}", hint=rebuild_hint(folder))
    if only is not None and only >= len(probe.gpus):
        names = ", ".join(f"{index} is {gpu.name}" for index, gpu in enumerate(probe.gpus))
        raise RuntimeMissing(f"--device {device}: no such GPU here", hint=f"CUDA's {names}")
    for index, gpu in enumerate(probe.gpus):
        if only in (None, index) and _runs_on(manifest, gpu):
            return Fit(device=index, gpu=gpu)
    here = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in probe.gpus)
    raise RuntimeMissing(f"{folder} was built for {built}; this machine has {here}", hint=rebuild_hint(folder))


def built_for(manifest: Manifest) -> str:
    """What an engine was built for, in one phrase."""
    library = library_of(manifest)
    gpus = ", ".join(manifest.execution.compute_capabilities) or "unknown"
    later = " and later" if HARDWARE_COMPATIBLE in manifest.execution.engine_options else ""
    system = library.engine_reads_on or manifest.versions.get("platform", "an unknown system")
    return f"{library.title} {_built_version(manifest, library)}, compute capability {gpus}{later}, on {system}"


def fallback_hint(folder: Path, manifest: Manifest) -> str:
    """How to run a bundle without a GPU."""
    if (folder / FALLBACK_FOLDER / "manifest.json").is_file():
        return (
            "use its fallback bundle, which runs on the CPU (slowly; --target openvino is fast there): "
            f"{folder / FALLBACK_FOLDER}"
        )
    if manifest.execution.fallback_file:
        return (
            f"run its graph {folder / manifest.execution.fallback_file} with ONNX Runtime, or export --target openvino"
        )
    return "export with --target openvino or onnx for a machine without a GPU"


def rebuild_hint(folder: Path) -> str:
    """The command that builds a bundle's engine again, on the machine that shall run it."""
    return f"atlas-export rebuild {folder}"


def _index(device: str | None) -> int | None:
    named = re.fullmatch(r"(?:cuda|gpu)?:?(\d+)|cuda|gpu", (device or "cuda").strip().lower())
    if named is None:
        raise UsageError(f"--device {device}: an engine runs on an NVIDIA GPU", hint="cuda, cuda:1, or leave it out")
    return None if named[1] is None else int(named[1])


def _built_version(manifest: Manifest, library: TensorRTLibrary) -> str:
    return manifest.versions.get(library.module.replace("_", "-"), "unknown")


def _operating_system(manifest: Manifest, library: TensorRTLibrary) -> str:
    built = manifest.versions.get("platform", "").partition(" ")[0]
    if library.engine_reads_on or built in {"", platform.system()}:
        return ""
    return f"this is {platform.system()}"


def _version(manifest: Manifest, library: TensorRTLibrary, version: str) -> str:
    built = _built_version(manifest, library)
    if built == "unknown" or _release(version) == _release(built):
        return ""
    if VERSION_COMPATIBLE in manifest.execution.engine_options and _release(version) > _release(built):
        return ""
    return f"here is {library.title} {version}"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _runs_on(manifest: Manifest, gpu: Gpu) -> bool:
    built = manifest.execution.compute_capabilities
    if not built or gpu.compute_capability in built:
        return True
    # AMPERE_PLUS: one engine for every generation from Ampere on.
    return HARDWARE_COMPATIBLE in manifest.execution.engine_options and _release(gpu.compute_capability) >= (8, 0)
