"""A conformance report as tables."""

from collections.abc import Iterator

from atlas_edge.bench.conformance.finding import Finding, Outcome
from atlas_edge.bench.conformance.run import Conformance
from atlas_edge.bench.report.rows import Rows


def terminal_rows(report: Conformance) -> Rows:
    """One line a question; what is to be read of a FAIL or SKIPPED stands below."""
    rows = tuple(
        (finding.program, finding.asked, finding.outcome.value, *_cosines(finding)) for finding in report.findings
    )
    return Rows(
        title=headline(report),
        headings=("program", "asked", "verdict", "cosine, median", "worst"),
        rows=rows,
        notes=tuple(_notes(report)),
        keys=2,
    )


def page_rows(report: Conformance) -> list[Rows]:
    """What each said, and how to ask it again."""
    said = tuple(
        (_name(finding), finding.asked, finding.outcome.value, *_cosines(finding), _words(finding))
        for finding in report.findings
    )
    asked = tuple((finding.program, finding.asked, finding.command) for finding in report.findings)
    of_tiles = "Cosine of the bundle's selftest tiles to the full-precision embeddings that are stored in it."
    return [
        Rows(
            title="What they say",
            headings=("program", "asked", "verdict", "cosine, median", "worst", "said"),
            rows=said,
            notes=(f"{of_tiles} A cosine passes where it is as good as selftest asks for.",),
        ),
        Rows(
            title="Ask them again",
            headings=("program", "asked", "command"),
            rows=asked,
            notes=("MODEL is the bundle's model file, TILES what --test-data writes.",),
        ),
    ]


def headline(report: Conformance) -> str:
    """`Conformance of demo-int8: FAIL (8 PASS, 1 FAIL, 4 SKIPPED)`."""
    counts = ", ".join(f"{report.count(outcome)} {outcome}" for outcome in Outcome)
    return f"Conformance of {report.bundle}: {'PASS' if report.passed else 'FAIL'} ({counts})"


def _notes(report: Conformance) -> Iterator[str]:
    skipped: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.outcome is Outcome.FAIL:
            known = "" if finding.known is None else f"; known: {finding.known}"
            yield f"FAIL: {finding.program}, {finding.asked}: {_words(finding)}{known}"
        elif finding.outcome is Outcome.SKIPPED:
            skipped.setdefault(finding.said, []).append(f"{finding.program} ({finding.asked})")
    for reason, who in skipped.items():
        yield f"SKIPPED: {reason}: {', '.join(who)}"


def _name(finding: Finding) -> str:
    return finding.program if finding.version is None else f"{finding.program} {finding.version.partition('+')[0]}"


def _cosines(finding: Finding) -> tuple[str, str]:
    found = finding.figures
    return ("", "") if found is None else (f"{found.cosine_median:.5f}", f"{found.cosine_worst:.4f}")


def _words(finding: Finding) -> str:
    figures = finding.figures
    parts = [finding.said]
    if figures is not None:
        parts.append(f"{figures.tiles} tiles, 1 - cosine {figures.distance:.2g}, allowed {figures.allowed:.2g}")
        if figures.to_deployed_worst is not None:
            parts.append(f"worst cosine to the graph where it was made {figures.to_deployed_worst:.5f}")
    return "; ".join(part for part in parts if part)
