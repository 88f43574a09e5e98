"""What quantization costs in robustness, from reports of `atlas-bench robustness`, as tables in docs/.

    python tools/robustness_table.py docs/robustness.md reports/demo-crc5 reports/dinov2-crc5

Each table goes between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->` of its report's folder.
"""

import sys
from pathlib import Path

from atlas_edge.bench.accuracy.stress import StressResult
from atlas_edge.bench.report.rows import accuracy_rows, interval_text, summary_rows
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
    for folder in reports:
        begin, end = (f"<!-- {folder.name}: {place} -->" for place in ("begin", "end"))
        before, after = around(document, begin, end)
        write_atomic(document, "\n".join((before + begin, *table(read_report(folder)), end + after)).encode())


def table(report: Report) -> list[str]:
    """One row a shift, one column a candidate, bold where it is more fragile; then agreement, drops, and what was lost.

    Lines of Markdown; lost are the metrics of scans and centres.

    Raises:
        InputError: It compares nothing under shifts.
    """
    found = {} if report.accuracy is None else report.accuracy.candidates
    shifts = [result.stress for result in next(iter(found.values())).stress] if found else []
    if not shifts:
        raise InputError("the report holds no shifts", hint="give one of atlas-bench robustness")
    lines = ["| shift | full precision moves | " + " | ".join(found) + " |"]
    lines.append("|---|---:|" + "---|" * len(found))
    for place, shift in enumerate(shifts):
        results = [candidate.stress[place] for candidate in found.values()]
        cells = [("**{}**" if result.more_fragile else "{}").format(_further(result)) for result in results]
        lines.append(f"| {shift} | {1 - results[0].reference_cosine:.4f} | {' | '.join(cells)} |")
    lost = [rows for rows in accuracy_rows(report) if rows.title == "Robustness lost"]
    for rows in (*summary_rows(report), *lost):
        lines += ["", _row(rows.headings), "|" + "---|" * len(rows.headings), *map(_row, rows.rows)]
    return lines


def _further(result: StressResult) -> str:
    return interval_text(result.extra_movement, "+.4f")


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(run_app(app))
