"""The report on a terminal: the summary, or with --verbose all of it, at whatever width the terminal has."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from atlas_edge.bench.report.rows import Rows, accuracy_rows, gate_rows, summary_rows
from atlas_edge.bench.report.schema import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Of more rows than these, turned on their side, the eye finds no column.
_MOST_SIDE_BY_SIDE = 4
_GAP = "  "


def print_accuracy(screen: "Console", report: Report, *, details: bool) -> None:
    """The accuracy section and the gate."""
    accuracy = report.accuracy
    compared = accuracy is not None and bool(accuracy.candidates)
    print_rows(screen, accuracy_rows(report) if details or not compared else summary_rows(report))
    print_rows(screen, gate_rows(report))
    for note in () if accuracy is None else accuracy.notes:
        screen.print(note, style="dim", markup=False)


def print_rows(screen: "Console", tables: Iterable[Rows]) -> None:
    """Tables with their notes, so that no figure is ever cut off or broken in two.

    Headings are wrapped first. A few rows that are still too wide for the terminal are turned on their side, next to
    one another, or printed as a block each; many rows are cut into tables of fewer columns, each of which says again
    which row it is.
    """
    for rows in tables:
        if not rows.rows:
            continue
        screen.print(rows.title, style="italic", markup=False)
        few = len(rows.rows) <= _MOST_SIDE_BY_SIDE
        turned = _turned(rows)
        if _fits(screen, rows):
            screen.print(_table(screen, rows))
        elif few and _fits(screen, turned):
            screen.print(_table(screen, turned))
        elif not few and (parts := _parts(screen, rows)):
            for part in parts:
                screen.print(_table(screen, part))
        else:
            _print_blocks(screen, rows)
        for note in rows.notes:
            screen.print(note, style="dim", markup=False)
        screen.print()


def _turned(rows: Rows) -> Rows:
    corner = _GAP.join(rows.headings[: rows.keys])
    sides = tuple(
        (rows.headings[column], *(cells[column] for cells in rows.rows))
        for column in range(rows.keys, len(rows.headings))
        if any(cells[column] for cells in rows.rows)
    )
    headings = (corner, *(_GAP.join(cells[: rows.keys]) for cells in rows.rows))
    return Rows(title=rows.title, headings=headings, rows=sides)


def _parts(screen: "Console", rows: Rows) -> list[Rows]:
    """The table cut between columns, the leading ones repeated; empty where a single column is too wide."""
    columns = list(range(rows.keys, len(rows.headings)))
    parts: list[Rows] = []
    while columns:
        fitting = [count for count in range(1, len(columns) + 1) if _fits(screen, _cut(rows, columns[:count]))]
        if not fitting:
            return []
        parts.append(_cut(rows, columns[: fitting[-1]]))
        columns = columns[fitting[-1] :]
    return parts


def _cut(rows: Rows, columns: list[int]) -> Rows:
    kept = [*range(rows.keys), *columns]
    cells = tuple(tuple(row[column] for column in kept) for row in rows.rows)
    return Rows(title=rows.title, headings=tuple(rows.headings[column] for column in kept), rows=cells, keys=rows.keys)


def _fits(screen: "Console", rows: Rows) -> bool:
    return _total(_widths(rows, wrapped=True)) <= screen.width


def _widths(rows: Rows, *, wrapped: bool) -> list[int]:
    """Columns of the terminal that each column needs, with its heading on one line or a word a line."""
    from rich.cells import cell_len

    needed = []
    for column, heading in enumerate(rows.headings):
        parts = [*(heading.split() if wrapped else [heading]), *(cells[column] for cells in rows.rows)]
        needed.append(max((cell_len(part) for part in parts), default=0))
    return needed


def _total(widths: list[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _table(screen: "Console", rows: Rows) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    widths = _widths(rows, wrapped=True)
    spare = screen.width - _total(widths)
    # What room is left goes to the headings that need least of it to stand on one line.
    missing = [whole - width for whole, width in zip(_widths(rows, wrapped=False), widths, strict=True)]
    for column in sorted(range(len(widths)), key=missing.__getitem__):
        given = min(spare, missing[column])
        widths[column] += given
        spare -= given
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for heading, width in zip(rows.headings, widths, strict=True):
        table.add_column(Text(heading), width=width)
    for cells in rows.rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _print_blocks(screen: "Console", rows: Rows) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for cells in rows.rows:
        screen.print(_GAP + ", ".join(cells[: rows.keys]), style="bold", markup=False)
        block = Table.grid(padding=(0, 2))
        block.add_column()
        block.add_column(overflow="fold")
        for heading, cell in zip(rows.headings[rows.keys :], cells[rows.keys :], strict=True):
            if cell:
                block.add_row(Text(heading), Text(cell))
        screen.print(Padding(block, (0, 0, 0, 2 * len(_GAP))))
