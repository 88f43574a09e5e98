"""A workstation in one report: what it is, which variant it should run, what that computes here and how fast."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atlas_edge.bench.choose.rows import choice_rows
from atlas_edge.bench.doctor.advice import Advice, advise
from atlas_edge.bench.doctor.checks import Check, machine_checks
from atlas_edge.bench.doctor.found import look
from atlas_edge.bench.report.markdown import table_markdown
from atlas_edge.bench.report.plain_html import tables_html
from atlas_edge.bench.report.rows import Rows
from atlas_edge.bench.selftest.rows import selftest_rows
from atlas_edge.bench.selftest.run import SelftestReport, run_selftest
from atlas_edge.bundle import read_manifest
from atlas_edge.errors import AtlasError, UsageError
from atlas_edge.package.choice import Choice, measure, remembered, the_chosen
from atlas_edge.package.manifest import is_package, variant_folder

FORMS = (".html", ".json", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workstation:
    """What `atlas-bench selftest` writes.

    Attributes:
        bundle: Its name, of a package with the variant.
        checks: As `atlas-export doctor` says them.
        advice: Which variant, what an upgrade would bring, the line for support.
        choice: Of a package; None for a bundle.
        selftest: None where it could not be run.
        error: Why not.
        error_text: The same, without the folders that the bundle lies in.
    """

    bundle: str
    checks: tuple[Check, ...]
    advice: Advice
    choice: Choice | None
    selftest: SelftestReport | None
    error: AtlasError | None
    error_text: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the selftest was run and passed."""
        return self.selftest is not None and self.selftest.passed


def examine(
    bundle: Path, *, device: str | None = None, progress: Callable[[str], None] = lambda _: None, **options: Any
) -> Workstation:
    """Look at the machine, and run a bundle's selftest on it, of a package that of the variant that is best here.

    What keeps the selftest from running is part of the report: then it is needed most.

    Args:
        bundle: Bundle folder, or a package.
        device: See `open_bundle`.
        progress: Told what is being done.
        options: See `run_selftest`.

    Raises:
        InputError: It is neither bundle nor package.
        UsageError: An option cannot be: that is no finding of the machine.
    """
    choice, tested, error, folder = None, None, None, bundle
    packed = is_package(bundle)
    if not packed:
        read_manifest(bundle)
    try:
        if packed:
            choice = remembered(bundle, device=device) or measure(bundle, device=device, progress=progress)
            chosen = the_chosen(bundle, choice)
            folder, device = variant_folder(bundle, chosen.variant), chosen.device
        progress(f"selftest of {folder.name}")
        tested = run_selftest(folder, device=device, **options)
    except UsageError:
        raise
    except AtlasError as raised:
        error = raised
    found = look()
    name = bundle.resolve().name
    return Workstation(
        bundle=name if folder == bundle else f"{name}/{folder.relative_to(bundle).as_posix()}",
        checks=tuple(machine_checks(found)),
        advice=advise(found, bundle if choice is not None else None),
        choice=choice,
        selftest=tested,
        error=error,
        error_text=None if error is None else str(error).replace(str(bundle), name),
    )


def workstation_rows(report: Workstation) -> list[Rows]:
    """Every table: the selftest, the variants, the machine, what would be better."""
    tables = [] if report.selftest is None else selftest_rows(report.selftest)
    if report.choice is not None:
        tables.append(choice_rows(report.bundle.partition("/")[0], report.choice))
    checks = tuple((check.status.value, check.name, check.found, check.fix) for check in report.checks)
    tables.append(Rows(title="This machine", headings=("", "what", "found", "fix"), rows=checks, keys=2))
    if report.advice.upgrades:
        better = tuple((upgrade.change, upgrade.brings) for upgrade in report.advice.upgrades)
        tables.append(Rows(title="What would be better", headings=("change", "what it brings"), rows=better))
    return tables


def workstation_json(report: Workstation) -> dict[str, Any]:
    """The selftest's figures, and beside them what was found of the machine."""
    figures = {"bundle": report.bundle} if report.selftest is None else asdict(report.selftest)
    return {
        **figures,
        "passed": report.passed,
        "error": report.error_text,
        "checks": [asdict(check) for check in report.checks],
        "advice": asdict(report.advice),
        "choice": None if report.choice is None else report.choice.model_dump(mode="json"),
    }


def workstation_text(report: Workstation, form: str) -> str:
    """The report as a file.

    Args:
        report: What was found.
        form: One of `FORMS`.
    """
    if form == ".json":
        return json.dumps(workstation_json(report), indent=2, default=str) + "\n"
    title, lines = f"Selftest of {report.bundle}", _headline(report)
    if form == ".html":
        return tables_html(title, lines, workstation_rows(report))
    tables = [line for rows in workstation_rows(report) for line in table_markdown(rows)]
    return "\n".join([f"# {title}", "", *(part for line in lines for part in (line, "")), *tables])


def _headline(report: Workstation) -> list[str]:
    tested, advice = report.selftest, report.advice
    if tested is not None:
        first = f"{'PASS' if tested.passed else 'FAIL'}: keep {tested.keep}. {tested.created_utc}."
    else:
        first = f"NOT RUN: {report.error_text}"
    how = "measured here" if advice.measured else "by a rule"
    return [
        first,
        f"Variant for this machine, {how}: {advice.variant or 'none'}: {advice.why}.",
        f"For support: {advice.support}",
    ]
