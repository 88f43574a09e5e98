"""The report on a terminal: the summary, or with --verbose all of it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from atlas_edge.bench.report import Report
from atlas_edge.bench.rows import Rows, accuracy_rows, gate_rows, summary_rows

if TYPE_CHECKING:
    from rich.console import Console


def print_accuracy(screen: "Console", report: Report, *, details: bool) -> None:
    """The accuracy section and the gate."""
    accuracy = report.accuracy
    compared = accuracy is not None and bool(accuracy.candidates)
    print_rows(screen, accuracy_rows(report) if details or not compared else summary_rows(report))
    print_rows(screen, gate_rows(report))
    for note in () if accuracy is None else accuracy.notes:
        screen.print(note, style="dim", markup=False)


def print_rows(screen: "Console", tables: Iterable[Rows]) -> None:
    """Tables with their notes."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for rows in tables:
        table = Table(*rows.headings, title=rows.title, title_justify="left", box=box.SIMPLE_HEAD)
        for cells in rows.rows:
            table.add_row(*(escape(cell) for cell in cells))
        screen.print(table)
        for note in rows.notes:
            screen.print(note, style="dim", markup=False)
