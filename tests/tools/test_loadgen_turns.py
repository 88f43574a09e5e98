"""LoadGen and our clock on the same encoder."""

from pathlib import Path

import pytest

from atlas_edge.cli import run_app
from loadgen_turns import app


def test_both_measure_the_same_encoder(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlperf_loadgen")
    words = [str(bundle), "--rounds", "2", "--seconds", "0.2", "--threads", "1"]
    assert run_app(app, words) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["SingleStream", "Offline"]
    for row in rows:
        assert float(row[3].split()[0]) > 0 and float(row[4].split()[0]) > 0
        # Of one encoder in one process: no more than other programs' load of a moment apart.
        assert 0.1 < float(row[5].split()[0]) < 10
