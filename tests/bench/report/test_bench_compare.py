import json
from pathlib import Path

import pytest

from atlas_edge.bench.report.compare import Movement, compare_reports
from atlas_edge.bench.report.files import write_report
from atlas_edge.bench.report.schema import Report
from reports import facts, report
from support import RunCommand


def _of(old: Report, new: Report) -> dict[str, Movement]:
    return {one.figure: one for one in compare_reports(old, new).movements if one.encoder == "int8"}


def test_nothing_moves_between_equal_reports() -> None:
    found = compare_reports(report(), report())
    assert found.movements and not any(one.moved for one in found.movements)
    assert found.notes == ()


def test_a_drop_moves_when_the_difference_exceeds_both_half_widths_as_squares() -> None:
    # Half-widths 0.4 and 0.4: 0.566 together.
    within, beyond = _of(report(), report(drop_pp=1.05)), _of(report(), report(drop_pp=1.08))
    assert not within["linear drop, pp"].moved
    assert beyond["linear drop, pp"].moved and beyond["linear drop, pp"].worse
    assert beyond["linear drop, pp"].change.estimate == pytest.approx(0.58)
    assert any("each at 95 %" in note for note in compare_reports(report(), report(drop_pp=1.08)).notes)
    better = _of(report(drop_pp=1.08), report())["linear drop, pp"]
    assert better.moved and not better.worse


def test_ratios_are_compared_as_ratios() -> None:
    slower = _of(report(ratio=2.0), report(ratio=1.5))["throughput over the reference"]
    assert slower.change.estimate == pytest.approx(0.75)
    assert slower.moved and slower.worse
    assert not _of(report(ratio=2.0), report(ratio=1.9))["throughput over the reference"].moved


def test_cosines_of_the_same_tiles_are_compared_tile_by_tile() -> None:
    worse = _of(report(), report(noise=0.06))["cosine, mean of the same tiles"]
    assert worse.moved and worse.worse
    other = report(noise=0.06, fingerprint="another set")
    assert "cosine, mean of the same tiles" not in _of(report(), other)
    assert any("other tiles" in note for note in compare_reports(report(), other).notes)


def test_sizes_may_grow_by_a_hundredth_and_missing_encoders_are_named() -> None:
    old = report()
    sizes = {size: facts(size_bytes=size) for size in (980_000, 1_000_001, 1_009_999, 1_010_001)}
    verdicts = {}
    for size, one in sizes.items():
        new = old.model_copy(update={"encoders": {"ref": facts(reference=True), "int8": one}})
        found = _of(old, new)["model files, MB"]
        verdicts[size] = (found.moved, found.worse)
    assert verdicts == {
        980_000: (True, False), 1_000_001: (False, False), 1_009_999: (False, False), 1_010_001: (True, True)
    }  # fmt: skip
    gone = old.model_copy(update={"encoders": {"ref": facts(reference=True)}})
    assert "only in the old report: int8" in compare_reports(old, gone).notes


def test_the_command_prints_what_moved_and_fails_if_asked(tmp_path: Path, run_command: RunCommand) -> None:
    write_report(report(), tmp_path / "old")
    write_report(report(drop_pp=3.0), tmp_path / "new")
    done = run_command("atlas-bench", "compare", tmp_path / "old", tmp_path / "new", "--json")
    assert done.returncode == 0, done.stderr
    assert "linear drop, pp" in done.stderr and "WORSE" in done.stderr
    assert any(one["worse"] for one in json.loads(done.stdout)["movements"])
    failed = run_command("atlas-bench", "compare", tmp_path / "old", tmp_path / "new", "--fail")
    assert failed.returncode == 3 and "int8: linear drop, pp" in failed.stderr
    missing = run_command("atlas-bench", "compare", tmp_path / "old", tmp_path / "none")
    assert missing.returncode == 5 and "--report DIR" in missing.stderr
