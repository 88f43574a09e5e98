"""What was found, judged: PASS, WARN or FAIL, each shortcoming with its fix."""

from dataclasses import dataclass
from enum import StrEnum

from atlas_edge.bench.doctor.found import Found, runtime_modules
from atlas_edge.system import hardware
from atlas_edge.system.gpu_probe import GpuProbe
from atlas_edge.system.hardware import Cpu

# An encoder of 2 GB, its compiled copy, and the system.
_LITTLE_FREE_BYTES = 2 << 30


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


def machine_checks(found: Found) -> list[Check]:
    """What a workstation needs in order to run bundles."""
    checks = [*_cpu_checks(found), *_openvino_checks(found), *_memory_checks(found), _gpu_check(found.gpus)]
    return [*checks, *_runtime_checks(found.installed)]


def _cpu_checks(found: Found) -> list[Check]:
    cpu, integer, bfloat = found.cpu, found.integer, found.bfloat
    tried = "OpenVINO computes it here"
    kinds = f" ({found.topology})" if str(found.topology) else ""
    return [
        Check(
            name="processor",
            status=Status.PASS if cpu.avx2 else Status.FAIL,
            found=f"{cpu.name}, {cpu.cores} cores{kinds}, {'AVX2' if cpu.avx2 else 'no AVX2'}",
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


def _openvino_checks(found: Found) -> list[Check]:
    says = found.openvino
    if says is None:
        return []
    sums = "exact" if says.exact_int8 else "saturate, so INT8 is computed in float"
    hidden = f"; {found.hidden} hides instructions" if found.hidden else ""
    return [
        Check(
            name="OpenVINO's answer",
            status=Status.WARN if found.hidden else Status.PASS,
            found=f"{says.processor}: {', '.join(says.formats)}; 8-bit sums {sums}; devices "
            f"{', '.join(says.devices)}{hidden}",
            fix=f"unset {found.hidden.partition('=')[0]}" if found.hidden else "",
        )
    ]


def _memory_checks(found: Found) -> list[Check]:
    if not found.memory_bytes:
        return []
    little = found.free_bytes < _LITTLE_FREE_BYTES
    return [
        Check(
            name="memory",
            status=Status.WARN if little else Status.PASS,
            found=f"{found.memory_bytes / 2**30:.1f} GiB, {found.free_bytes / 2**30:.1f} GiB free",
            fix="close other programs, or give the machine more" if little else "",
        )
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
    versions, runtimes = hardware.versions(), runtime_modules()
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
