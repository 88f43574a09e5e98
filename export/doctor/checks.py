"""`atlas-export doctor`: what this machine can build and run, each shortcoming with its fix."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atlas_edge.bench.doctor.advice import Advice, advise
from atlas_edge.bench.doctor.checks import Check, Status, machine_checks
from atlas_edge.bench.doctor.found import Found, look
from atlas_edge.export.backends.base import Ability, backend_of
from atlas_edge.spec import Target
from atlas_edge.system import hardware

__all__ = ["Check", "Diagnosis", "Status", "diagnose"]

_TOOLS = ("torch", "timm", "onnx", "nncf", "modelopt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks and abilities of this machine, and what to run on it."""

    checks: tuple[Check, ...]
    abilities: tuple[Ability, ...]
    advice: Advice

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.status is Status.FAIL for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "checks": [asdict(check) for check in self.checks],
            "abilities": [asdict(ability) for ability in self.abilities],
            **asdict(self.advice),
            "versions": hardware.versions(),
        }


def diagnose(found: Found | None = None, *, package: Path | None = None) -> Diagnosis:
    """Judge a machine.

    Args:
        found: What is on it; this machine when None.
        package: Name the variant of this package.

    Raises:
        InputError: The package cannot be read.
    """
    found = look(_TOOLS) if found is None else found
    return Diagnosis(
        checks=(*machine_checks(found), _export_check(found.installed)),
        abilities=tuple(backend_of(target).ability(found.installed, gpu=bool(found.gpus.gpus)) for target in Target),
        advice=advise(found, package),
    )


def _export_check(installed: frozenset[str]) -> Check:
    missing = [name for name in _TOOLS if name not in installed]
    return Check(
        name="export tools",
        status=Status.WARN if missing else Status.PASS,
        found=f"missing {', '.join(missing)}" if missing else ", ".join(_TOOLS),
        fix="to export or distil here: pip install 'atlas-edge[torch]'" if missing else "",
    )
