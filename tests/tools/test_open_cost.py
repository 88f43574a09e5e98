"""The command that says what opening a bundle costs, on a tiny one."""

from pathlib import Path

import pytest

import open_cost as tool
from atlas_edge.errors import InputError, UsageError


def test_versions_take_turns_and_every_figure_has_its_row(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.open_cost(bundle, against=tool.HERE, rounds=1, batch=2)
    said = capsys.readouterr()
    rows = [line.split(" | ") for line in said.out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == [
        "start to first embedding, ms",
        "the same, compiled before, ms",
        *(f"memory, {call}" for call in ("one tile", "a call", "one tile again", "a call again")),
    ]
    assert float(rows[1][1]) > 0 and float(rows[1][2]) > 0
    assert said.err.index("the other") < said.err.index("this version")


def test_ratios_are_of_the_rounds() -> None:
    table = tool.markdown(
        {
            "this version": {"start, ms": [100.0, 200.0], "memory": [2e6, 2e6]},
            "the other": {"start, ms": [200.0, 400.0], "memory": [6e6, 6e6]},
        },
        weights_bytes=10**6,
    )
    assert "| start, ms | 141 | 283 | 2.00 [2.00, 2.00] |" in table
    assert "| memory | 2 MB (2.00x) | 6 MB (6.00x) | 3.00 [3.00, 3.00] |" in table


def test_what_cannot_be_measured_is_refused(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(UsageError, match="nothing would be measured"):
        tool.open_cost(bundle, rounds=0)
    with pytest.raises(InputError, match="no src/atlas_edge"):
        tool.open_cost(bundle, against=tmp_path)
