"""Which variant to run on a machine, what an upgrade would bring, and one line for whoever is asked for help."""

from dataclasses import dataclass
from pathlib import Path

from atlas_edge import __version__
from atlas_edge.bench.doctor.found import Found, runtime_modules
from atlas_edge.package.choice import remembered
from atlas_edge.package.manifest import PackageManifest, read_package
from atlas_edge.system import hardware

# DINOv2 ViT-S/14, two cores: docs/export.md and docs/workstation.md.
_WITH_VNNI, _WITHOUT = "3.5x the throughput of fp32 with VNNI (DINOv2 ViT-S/14, two cores of Zen 5)", "0.9x without"
_NO_BITS, _PORTABLE = "no arithmetic for fewer bits in the processor", "; onnx-int8-portable may gain a fifth"
_NVIDIA, _INTEL = "0x10de", "0x8086"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What to change, and what that would bring."""

    change: str
    brings: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to run.

    Attributes:
        variant: Target and precision, or the name of a package's variant; empty where nothing runs.
        why: What it rests on.
        measured: Whether it was measured here, by `atlas-bench choose`; a rule otherwise.
        upgrades: What would be faster, or run at all.
        support: The machine in one line, without names of users, hosts and folders.
    """

    variant: str
    why: str
    measured: bool
    upgrades: tuple[Upgrade, ...]
    support: str


def advise(found: Found, package: Path | None = None) -> Advice:
    """Name the variant for a machine.

    Args:
        found: The machine.
        package: Choose among its variants: what was measured here, or else the first that the rule prefers.

    Raises:
        InputError: The package cannot be read.
    """
    by_rule = _by_rule(found)
    variant, why, measured = (*by_rule[0], False) if by_rule else ("", "no runtime is installed", False)
    if package is not None:
        variant, why, measured = _of_package(package, read_package(package), by_rule)
    upgrades = tuple(_upgrades(found))
    return Advice(
        variant=variant, why=why, measured=measured, upgrades=upgrades, support=_support(found, variant, measured)
    )


def _by_rule(found: Found) -> list[tuple[str, str]]:
    """Variants that can run, the one to prefer first, and why."""
    here, ways = found.installed, list[tuple[str, str]]()
    if found.gpus.gpus and "tensorrt_rtx" in here:
        ways += [("tensorrt-rtx-int8", "an NVIDIA card and TensorRT-RTX"), ("tensorrt-rtx-int8/fp16", "the same")]
    if "openvino" in here:
        ways += [("openvino-int8", "VNNI or AMX")] if found.integer else []
        ways += [("openvino-bf16", "BF16 arithmetic")] if found.bfloat else []
        ways.append(("openvino-fp32", _NO_BITS + ("" if found.integer else _PORTABLE)))
    if "onnxruntime" in here:
        ways += [("onnx-int8", "VNNI or AMX")] if found.integer else []
        ways.append(("onnx-fp32", f"{_NO_BITS}; int8 may gain up to a third"))
    return ways


def _of_package(folder: Path, package: PackageManifest, by_rule: list[tuple[str, str]]) -> tuple[str, str, bool]:
    choice = remembered(folder)
    if choice is not None and choice.chosen is not None:
        return choice.chosen.variant, f"{choice.chosen.reason}, measured {choice.created_utc}", True
    first = next((way for way in by_rule if package.variant(way[0]) is not None), None)
    if first is None:
        return "", "none of its variants is known to run here; atlas-bench choose tries them", False
    return first[0], f"{first[1]}; atlas-bench choose measures it", False


def _upgrades(found: Found) -> list[Upgrade]:
    upgrades = []
    cards = " ".join(found.graphics).lower()
    if not found.gpus.gpus and (_NVIDIA in cards or "nvidia" in cards):
        upgrades.append(Upgrade(change="install the NVIDIA driver", brings="TensorRT-RTX variants run on the card"))
    if found.gpus.gpus and "tensorrt_rtx" not in found.installed:
        upgrades.append(_installing("tensorrt_rtx", "engines for the NVIDIA card that is here"))
    devices = () if found.openvino is None else found.openvino.devices
    intel = _INTEL in cards or "intel" in cards
    if intel and found.openvino is not None and not any(name.startswith(("GPU", "NPU")) for name in devices):
        driver = "install Intel's graphics or NPU driver (on Linux the compute runtime)"
        upgrades.append(Upgrade(change=driver, brings="--device GPU or NPU: Intel's graphics compute, too"))
    if "openvino" not in found.installed:
        upgrades.append(_installing("openvino", "the fastest runtime for a processor"))
    if "onnxruntime" not in found.installed and not found.integer:
        upgrades.append(_installing("onnxruntime", "int8 variants that may gain up to a third without VNNI"))
    if found.hidden:
        upgrades.append(Upgrade(change=f"unset {found.hidden}", brings="the instructions that it hides"))
    if not found.integer:
        upgrades.append(_for_vnni(found))
    if 0 < found.cpu.cores < found.all_cores:
        change = (
            f"let the process use all {found.all_cores} cores (affinity, docker --cpus); it may use {found.cpu.cores}"
        )
        upgrades.append(Upgrade(change=change, brings=f"up to {found.all_cores / found.cpu.cores:.1f}x"))
    return upgrades


def _installing(module: str, brings: str) -> Upgrade:
    return Upgrade(change=f"pip install 'atlas-edge[{runtime_modules()[module]}]'", brings=brings)


def _for_vnni(found: Found) -> Upgrade:
    brings = f"int8: {_WITH_VNNI}, {_WITHOUT}"
    if found.virtual:
        change = "let the virtual machine see its host's processor (CPU type host), where that has VNNI or AMX"
        return Upgrade(change=change, brings=brings)
    change = "a processor with VNNI or AMX: AMD since Zen 4, Intel since Ice Lake and Alder Lake"
    return Upgrade(change=change, brings=brings)


def _support(found: Found, variant: str, measured: bool) -> str:
    cpu = found.cpu
    sets = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    says, kinds = found.openvino, str(found.topology)
    parts = [
        f"atlas-edge {__version__}",
        "Python {python}, {platform}".format(**hardware.system()),
        f"{cpu.name}, {cpu.cores} of {found.all_cores or cpu.cores} cores" + (f" ({kinds})" if kinds else ""),
        "+".join(name for name in sets if getattr(cpu, name)) or "no AVX2",
        "openvino says nothing"
        if says is None
        else f"openvino says {'+'.join(says.formats)}, int8 sums {'exact' if says.exact_int8 else 'saturate'}, "
        f"{'+'.join(says.devices)}",
        f"{found.memory_bytes / 2**30:.0f} GiB",
        "; ".join(f"{gpu.name} {gpu.compute_capability}" for gpu in found.gpus.gpus) or found.gpus.problem,
        ", ".join(f"{name} {version}" for name, version in _runtime_versions().items()) or "no runtime",
        *([found.hidden] if found.hidden else []),
        *(["virtual machine"] if found.virtual else []),
        f"{variant or 'nothing'} {'measured' if measured else 'by rule'}",
    ]
    return " | ".join(parts)


def _runtime_versions() -> dict[str, str]:
    return hardware.installed_versions(name.replace("_", "-") for name in runtime_modules())
