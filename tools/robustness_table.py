"""What quantization costs in robustness, from reports of `atlas-bench robustness`, as tables in docs/.

    python tools/robustness_table.py docs/robustness.md reports/demo-crc5 reports/dinov2-crc5

Each table goes between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->` of its report's folder. Candidates
that were run in parts stand in one table where the folders are called `NAME`, `NAME.2`, `NAME.3`.
"""

import sys
from pathlib import Path

from atlas_edge.bench.accuracy.stress import StressResult
from atlas_edge.bench.report.rows import Rows, accuracy_rows, interval_text, summary_rows
from atlas_edge.bench.report.schema import Report, read_report
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import InputError
from atlas_edge.system.atomic import write_atomic
from parts.marked import around

app = make_app("robustness_table", __doc__ or "")


@app.default
def robustness_table(document: Path, /, *reports: Path) -> None:
    """Write the tables.

    Args:
        document: Markdown file with the marks.
        reports: Folders that atlas-bench robustness wrote.
    """
    parts: dict[str, list[Report]] = {}
    for folder in reports:
        parts.setdefault(folder.name.partition(".")[0], []).append(read_report(folder))
    for name, found in parts.items():
        begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
        before, after = around(document, begin, end)
        write_atomic(document, "\n".join((before + begin, *table(*found), end + after)).encode())


def table(*reports: Report) -> list[str]:
    """One row a shift, one column a candidate, bold where it is more fragile; then agreement, drops, and what was lost.

    Lines of Markdown; lost are the metrics of scans and centres.

    Args:
        reports: Of the same tiles and reference.

    Raises:
        InputError: They compare nothing under shifts, or the reference moves otherwise in one of them.
    """
    candidates: dict[str, tuple[StressResult, ...]] = {}
    for report in reports:
        if report.accuracy is not None:
            candidates |= {name: found.stress for name, found in report.accuracy.candidates.items()}
    if not any(candidates.values()):
        raise InputError("the report holds no shifts", hint="give one of atlas-bench robustness")
    moved = {name: _reference(results) for name, results in candidates.items()}
    first = next(iter(moved.values()))
    other = [name for name, found in moved.items() if found != first]
    if other:
        raise InputError(f"{other[0]} was run on other tiles or shifts", hint="give reports of the same tiles")
    lines = ["| shift | full precision moves | " + " | ".join(candidates) + " |"]
    lines.append("|---|---:|" + "---|" * len(candidates))
    for (shift, movement), *results in zip(first, *candidates.values(), strict=True):
        cells = [("**{}**" if result.more_fragile else "{}").format(_further(result)) for result in results]
        lines.append(f"| {shift} | {movement} | {' | '.join(cells)} |")
    for tables in zip(*map(_behind, reports), strict=True):
        headings = tables[0].headings
        rows = [_row(row) for part in tables for row in part.rows]
        lines += ["", _row(headings), "|" + "---|" * len(headings), *rows]
    return lines


def _reference(results: tuple[StressResult, ...]) -> list[tuple[str, str]]:
    return [(result.stress, f"{1 - result.reference_cosine:.4f}") for result in results]


def _behind(report: Report) -> list[Rows]:
    return [*summary_rows(report), *(rows for rows in accuracy_rows(report) if rows.title == "Robustness lost")]


def _further(result: StressResult) -> str:
    return interval_text(result.extra_movement, "+.4f")


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(run_app(app))
