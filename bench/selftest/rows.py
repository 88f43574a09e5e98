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
    found = [Rows(title=title, headings=headings, rows=rows, notes=notes)]
    return found if report.speed is None else [*found, *throughput_and_latency(report.speed)]
