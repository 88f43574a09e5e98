"""`atlas-bench robustness`: every shift of the sweep, paired, in a report like any other."""

import json
from pathlib import Path

import pytest

from atlas_edge.bench.accuracy.sweep import SWEEP
from atlas_edge.bench.cli import app
from atlas_edge.bench.report.schema import read_report
from atlas_edge.cli import run_app


def test_every_shift_is_compared_in_pairs(
    bundle: Path, tiny_model: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["robustness", str(bundle), "--reference", str(tiny_model), "--eval", str(tiles)]
    limits = ["--limit", "8", "--fit-limit", "12", "--shift-tiles", "4", "--threads", "1"]
    assert run_app(app, [*words, *limits, "--report", str(tmp_path / "report"), "--json"]) == 0
    printed = capsys.readouterr()
    found = read_report(tmp_path / "report")
    assert found.accuracy is not None and json.loads(printed.out) == json.loads(found.model_dump_json())
    (candidate,) = found.accuracy.candidates.values()
    assert [result.stress for result in candidate.stress] == list(SWEEP)
    assert all(result.tiles == 4 and result.drop_pp is not None for result in candidate.stress)
    assert "µm per pixel x 0.5" in printed.err and "JPEG quality 30" in printed.err
    assert "µm per pixel x 2" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    other = ["robustness", str(bundle), "--reference", "atlas2-demo", "--eval", str(tiles)]
    assert run_app(app, other) == 5 and "192 numbers" in capsys.readouterr().err
    assert run_app(app, ["robustness", "--reference", str(tiny_model), "--eval", str(tiles)]) == 2
    assert run_app(app, [*words, "--shift-tiles", "1"]) == 2
