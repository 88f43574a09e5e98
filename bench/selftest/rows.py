"""A selftest as tables."""

from atlas_edge.bench.report.rows import Rows
from atlas_edge.bench.report.speed_rows import throughput_and_latency
from atlas_edge.bench.selftest.run import SelftestReport


def selftest_rows(report: SelftestReport) -> list[Rows]:
    """What each precision computes here and how fast, and which to keep."""
    headings = ("precision", "verdict", "1 - cosine here, median", "when made", "allowed", "p1 cosine", "finite")
    rows = tuple(
        (
            name,
            "PASS" if case.passed else "FAIL",
            f"{case.distance:.2g}",
            "not recorded" if case.distance_when_made is None else f"{case.distance_when_made:.2g}",
            f"{case.allowed:.2g}",
            f"{case.agreement.cosine_p1:.5f}",
            "yes" if case.finite else "NO",
        )
        for name, case in report.cases.items()
    )
    machine = report.machine
    notes = (
        f"{report.model}, target {report.target}, on {machine.cpu}, {', '.join(machine.gpus) or 'no NVIDIA GPU'}, "
        f"{machine.system}. Tiles: synthetic.",
        *(f"{name} ran in {case.runtime}." for name, case in report.cases.items()),
        f"Keep {report.keep}.",
    )
    title = f"Selftest of {report.bundle}: {'PASS' if report.passed else 'FAIL'}"
    found = [Rows(title=title, headings=headings, rows=rows, notes=notes), *_decision_rows(report)]
    return found if report.speed is None else [*found, *throughput_and_latency(report.speed)]


def _decision_rows(report: SelftestReport) -> list[Rows]:
    decided = [(name, case.decisions) for name, case in report.cases.items() if case.decisions is not None]
    rows = tuple(
        (
            name,
            f"{found.changed} of {found.tiles}",
            "not recorded" if found.changed_when_made is None else f"{found.changed_when_made} of {found.tiles}",
        )
        for name, found in decided
    )
    if not rows:
        return []
    return [
        Rows(
            title="Decisions of the probe beside the bundle",
            headings=("precision", "changed from full precision, here", "when made"),
            rows=rows,
            notes=("Tiles are synthetic: as many as where it was made is what to expect; none of it is judged.",),
        )
    ]
