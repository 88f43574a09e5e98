"""`atlas-export doctor`: what this machine can build and run, each shortcoming with its fix."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from atlas_edge.export.backends.base import Ability, backend_of
from atlas_edge.runtimes.gpu_probe import GpuProbe, probe_gpu
from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import Target
from atlas_edge.system import hardware
from atlas_edge.system.hardware import Cpu


class Status(StrEnum):
    """PASS as it should be, WARN works with less, FAIL stops a job."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor's report; `fix` is empty where nothing needs mending."""

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks and abilities of this machine."""

    checks: tuple[Check, ...]
    abilities: tuple[Ability, ...]

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.status is Status.FAIL for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "checks": [asdict(check) for check in self.checks],
            "abilities": [asdict(ability) for ability in self.abilities],
            "versions": hardware.versions(),
        }


def diagnose(
    cpu: Cpu | None = None, gpus: GpuProbe | None = None, installed: frozenset[str] | None = None
) -> Diagnosis:
    """Look at the processor, the GPUs and what is installed.

    Args:
        cpu: The processor; this machine's when None.
        gpus: What the NVIDIA driver says; this machine's when None.
        installed: Importable modules among those that are asked for; looked up when None.
    """
    asked = cpu is None
    cpu = hardware.cpu() if cpu is None else cpu
    gpus = probe_gpu() if gpus is None else gpus
    installed = frozenset(filter(find_spec, (*_TOOLS, *_runtimes()))) if installed is None else installed
    known = _asked_of_openvino() if asked and "openvino" in installed else None
    checks = (*_cpu_checks(cpu, known), _gpu_check(gpus), *_runtime_checks(installed), _export_check(installed))
    abilities = tuple(backend_of(target).ability(installed, gpu=bool(gpus.gpus)) for target in Target)
    return Diagnosis(checks=checks, abilities=abilities)


_TOOLS = ("torch", "timm", "onnx", "nncf", "modelopt")


def _runtimes() -> dict[str, str]:
    """Module of each runtime -> the extra that brings it."""
    return {runtime.module: runtime.extra for runtime in map(runtime_of, Target)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arithmetic:
    """What OpenVINO found when it tried: it knows processors whose features Windows does not list."""

    exact_int8: bool
    bf16: bool


def _asked_of_openvino() -> _Arithmetic | None:
    from atlas_edge.runtimes.devices.openvino import float_formats
    from atlas_edge.runtimes.int8_sums import int8_sums_are_exact

    try:
        return _Arithmetic(exact_int8=int8_sums_are_exact(), bf16="BF16" in float_formats())
    except Exception:  # a broken installation raises anything, and is told by the runtime's own line
        return None


def _cpu_checks(cpu: Cpu, known: _Arithmetic | None) -> list[Check]:
    integer = cpu.avx512_vnni or cpu.avx_vnni or cpu.amx_int8 or (known is not None and known.exact_int8)
    bfloat = cpu.avx512_bf16 or cpu.amx_bf16 or (known is not None and known.bf16)
    tried = "OpenVINO computes it here"
    return [
        Check(
            name="processor",
            status=Status.PASS if cpu.avx2 else Status.FAIL,
            found=f"{cpu.name}, {cpu.cores} cores, {'AVX2' if cpu.avx2 else 'no AVX2'}",
            fix="" if cpu.avx2 else "use a processor with AVX2 (2013 or later)",
        ),
        Check(
            name="INT8 arithmetic",
            status=Status.PASS if integer else Status.WARN,
            found=_named(cpu, amx_int8="AMX-INT8", avx512_vnni="AVX512-VNNI", avx_vnni="AVX-VNNI")
            or (tried if integer else "no VNNI, no AMX"),
            fix="" if integer else "OpenVINO bundles in INT8 are right here, but slower than those of --precision fp32",
        ),
        Check(
            name="BF16 arithmetic",
            status=Status.PASS if bfloat else Status.WARN,
            found=_named(cpu, amx_bf16="AMX-BF16", avx512_bf16="AVX512-BF16")
            or (tried if bfloat else "no AVX512-BF16, no AMX"),
            fix=""
            if bfloat
            else f"BF16 bundles run in f32 here: choose --precision {'int8 or fp32' if integer else 'fp32'}",
        ),
    ]


def _named(cpu: Cpu, **names: str) -> str:
    return ", ".join(label for attribute, label in names.items() if getattr(cpu, attribute))


def _gpu_check(probe: GpuProbe) -> Check:
    if probe.gpus:
        cards = (f"{gpu.name} (compute {gpu.compute_capability})" for gpu in probe.gpus)
        found = f"{'; '.join(cards)}; the driver supports CUDA {probe.driver}"
        return Check(name="GPU", status=Status.PASS, found=found)
    return Check(
        name="GPU",
        status=Status.WARN,
        found=probe.problem,
        fix="engines can be built here but not run: install the NVIDIA driver, or deploy --target openvino",
    )


def _runtime_checks(installed: frozenset[str]) -> list[Check]:
    versions, runtimes = hardware.versions(), _runtimes()
    checks = []
    for module, extra in runtimes.items():
        here = module in installed
        version = versions.get(module.replace("_", "-"), "version unknown")
        checks.append(
            Check(
                name=module,
                status=Status.PASS if here else Status.WARN,
                found=version if here else "not installed",
                fix="" if here else f"pip install 'atlas-edge[{extra}]'",
            )
        )
    if not installed & runtimes.keys():
        checks.append(
            Check(
                name="any runtime",
                status=Status.FAIL,
                found="none: no bundle can be opened",
                fix="pip install 'atlas-edge[openvino]'",
            )
        )
    return checks


def _export_check(installed: frozenset[str]) -> Check:
    missing = [name for name in _TOOLS if name not in installed]
    return Check(
        name="export tools",
        status=Status.WARN if missing else Status.PASS,
        found=f"missing {', '.join(missing)}" if missing else ", ".join(_TOOLS),
        fix="to export or distil here: pip install 'atlas-edge[torch]'" if missing else "",
    )
