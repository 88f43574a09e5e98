"""`atlas-bench conformance`: what programs that others wrote say of a bundle's files.

Each is used as its own users use it, with its defaults, and never through our runtimes: a bundle that passes does so by
their judgement. Embeddings are those of the bundle's selftest tiles, and are judged as `selftest` judges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from atlas_edge.bench.conformance.checks import (
    bioimageio,
    metadata,
    onnx,
    polygraphy,
    runtimes,
    signing,
    slides,
    tensorrt,
)
from atlas_edge.bench.conformance.finding import Check, Finding, Outcome, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.bench.machine import Machine, this_machine
from atlas_edge.system.hardware import installed_versions

SCHEMA_VERSION = 1
CHECKS: tuple[Check, ...] = (
    *runtimes.CHECKS,
    *onnx.CHECKS,
    *metadata.CHECKS,
    *polygraphy.CHECKS,
    *tensorrt.CHECKS,
    *slides.CHECKS,
    *bioimageio.CHECKS,
    *signing.CHECKS,
)
# How ONNX Runtime says that it has no code for an operator in some number format: nothing is wrong with the file.
_NO_KERNEL = "NOT_IMPLEMENTED"
_LONGEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance:
    """The whole of `conformance.json`.

    Attributes:
        bundle: Name of its folder.
        model: Name of the encoder.
        target: What it was built for.
        precision: Of its compute-heavy layers.
        portable: See `Execution.portable`.
        manifest_sha256: Of `manifest.json`, which holds the hash of each of the bundle's files; all were checked.
        files: How many.
        findings: One a question.
        passed: No program refuses a file, or computes something else of it.
    """

    schema_version: int
    created_utc: str
    bundle: str
    model: str
    target: str
    precision: str
    portable: bool
    manifest_sha256: str
    files: int
    machine: Machine
    findings: tuple[Finding, ...]
    passed: bool

    def count(self, outcome: Outcome) -> int:
        """Findings of that outcome."""
        return sum(finding.outcome is outcome for finding in self.findings)


def run_conformance(
    subject: Subject, *, checks: Sequence[Check] = CHECKS, progress: Callable[[str], None] = lambda _: None
) -> Conformance:
    """Ask every program.

    Args:
        subject: From `read_subject`.
        checks: Who is asked what.
        progress: Told who is being asked.
    """
    findings = []
    for check in checks:
        progress(f"{check.program}: {check.asked}")
        findings.append(ask(check, subject))
    manifest = subject.manifest
    return Conformance(
        schema_version=SCHEMA_VERSION,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=subject.bundle.resolve().name,
        model=manifest.encoder.name,
        target=manifest.target.value,
        precision=manifest.precision.value,
        portable=manifest.execution.portable,
        manifest_sha256=subject.manifest_sha256,
        files=len(manifest.files),
        machine=this_machine(),
        findings=tuple(findings),
        passed=all(finding.outcome is not Outcome.FAIL for finding in findings),
    )


def ask(check: Check, subject: Subject) -> Finding:
    """Ask one program; whatever it raises is its answer."""
    found = installed_versions((check.distribution,)).get(check.distribution)
    version = found if check.version is None else check.version()
    known = figures = None
    if version is None:
        outcome, said = Outcome.SKIPPED, f"{check.distribution} is not installed"
    else:
        try:
            answer = check.run(subject)
        except Skip as reason:
            outcome, said = Outcome.SKIPPED, str(reason)
        except MemoryError:
            raise
        except Exception as error:  # programs of others raise anything
            text = f"{type(error).__name__}: {error}"
            outcome = Outcome.SKIPPED if _NO_KERNEL in text else Outcome.FAIL
            said = f"has no code for it: {text}" if _NO_KERNEL in text else text
        else:
            outcome, said, figures = Outcome.PASS if answer.passed else Outcome.FAIL, answer.said, answer.figures
            known = None if answer.passed else answer.known
    return Finding(
        program=check.program,
        version=version,
        asked=check.asked,
        outcome=outcome,
        said=_one_line(said, subject.bundle),
        command=check.command,
        figures=figures,
        known=known,
    )


def _one_line(text: str, bundle: Path) -> str:
    """Without the folders that the bundle lies in."""
    for folder in (bundle, bundle.resolve()):
        text = text.replace(str(folder), bundle.resolve().name)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
