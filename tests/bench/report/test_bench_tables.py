"""Tables on terminals of every width: no figure is cut off, broken in two or lost."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.budgets import Budget
from atlas_edge.bench.report.rows import Rows, accuracy_rows, gate_rows, summary_rows
from atlas_edge.bench.report.speed_rows import speed_rows
from atlas_edge.bench.report.terminal import print_rows
from reports import report


def printed(tables: list[Rows], width: int) -> str:
    out = io.StringIO()
    print_rows(Console(file=out, width=width, highlight=False), tables)
    return out.getvalue()


def many(columns: int, rows: int) -> Rows:
    headings = ("candidate", "shift", *(f"figure {number}" for number in range(columns)))
    cells = tuple(
        (f"int8-{row}", "blur", *(f"+{row}.{n} pp [-1.0, +2.0]" for n in range(columns))) for row in range(rows)
    )
    return Rows(title="Many", headings=headings, rows=cells, keys=2)


@pytest.mark.parametrize("width", [60, 80, 100, 250])
def test_every_figure_is_whole_on_one_line(width: int) -> None:
    made = report(budget=Budget(max_drop_pp=0.6, min_cosine=0.99))
    tables = [*summary_rows(made), *accuracy_rows(made), *gate_rows(made), *speed_rows(made), many(5, 2), many(5, 9)]
    text = printed(tables, width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in text
    for rows in tables:
        for cells in rows.rows:
            for cell in cells:
                # Advice is prose and may be wrapped; whatever holds a figure may not.
                assert any(cell in line for line in lines) or cell in cells[-1:], cell


def test_a_narrow_terminal_turns_few_rows_and_cuts_many_between_columns() -> None:
    few = printed([many(4, 2)], 80).splitlines()
    assert [line.split()[0] for line in few if line.startswith("figure")] == ["figure"] * 4
    assert any("int8-0  blur" in line and "int8-1  blur" in line for line in few)
    lines = printed([many(5, 9)], 80).splitlines()
    heads = [line for line in lines if line.startswith("candidate")]
    assert len(heads) == 3 and all("shift" in head for head in heads)
    assert sum("figure" in head for head in heads) == 3 and sum(line.startswith("int8-8") for line in lines) == 3


def test_a_wide_terminal_gets_one_table() -> None:
    lines = printed([many(5, 9)], 200).splitlines()
    assert [line.startswith("candidate") for line in lines].count(True) == 1
    assert sum(line.startswith("int8-") for line in lines) == 9


def test_names_longer_than_the_terminal_are_wrapped_into_blocks() -> None:
    name = "bundles/" + "x" * 100
    rows = Rows(title="Long", headings=("encoder", "tiles/s"), rows=((name, "1.0"),))
    text = printed([rows], 40)
    assert text.replace("\n", "").replace(" ", "").count("x") >= 100
    assert "tiles/s  1.0" in text


def test_a_turned_table_leaves_out_what_nobody_has() -> None:
    rows = Rows(title="Gate", headings=("encoder", "figure", "advice"), rows=(("a", "x" * 70, ""), ("b", "1.0", "")))
    assert "advice" not in printed([rows], 80)


def test_an_empty_table_prints_nothing() -> None:
    assert printed([Rows(title="None", headings=("a",), rows=())], 80) == ""


def test_what_plismbench_lost_has_its_interval_and_its_unit() -> None:
    made = report()
    assert made.accuracy is not None
    lost = {"cosine": Interval(estimate=0.01, low=-0.02, high=0.04, units=40, unit="position")}
    candidates = {name: replace(found, plism_drops=lost) for name, found in made.accuracy.candidates.items()}
    tables = accuracy_rows(made.model_copy(update={"accuracy": replace(made.accuracy, candidates=candidates)}))
    (rows,) = (rows for rows in tables if rows.title == "Robustness lost")
    assert rows.headings == ("candidate", "plismbench median cosine lost, 95 %")
    assert rows.rows == (("int8", "+0.0100 [-0.0200, +0.0400]"),)
    assert any("by position" in note for note in rows.notes)
    assert not [rows for rows in accuracy_rows(made) if rows.title == "Robustness lost"]
