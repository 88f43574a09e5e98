"""The tables of docs/robustness.md, and the simulated scans that some of them are measured on."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from atlas_edge.bench.accuracy.stress import StressResult
from atlas_edge.bench.interval import Interval
from atlas_edge.bench.report.schema import REPORT_FILE
from atlas_edge.cli import run_app
from atlas_edge.tiles import open_tiles
from reports import report
from robustness_table import app as tables
from simulated_scans import app as scans


def test_a_table_is_what_the_report_says(tmp_path: Path) -> None:
    moved = Interval(estimate=0.002, low=0.001, high=0.003, units=40)
    result = StressResult(
        stress="blur 1 px", tiles=40, reference_cosine=0.95, candidate_cosine=0.948, extra_movement=moved,
        agreement_p1=0.9, drop_pp=None, more_fragile=True,
    )  # fmt: skip
    made = report()
    assert made.accuracy is not None
    candidates = {name: replace(found, stress=(result,)) for name, found in made.accuracy.candidates.items()}
    folder, page = tmp_path / "demo", tmp_path / "page.md"
    folder.mkdir()
    changed = made.model_copy(update={"accuracy": replace(made.accuracy, candidates=candidates)})
    (folder / REPORT_FILE).write_text(changed.model_dump_json())
    page.write_text("before\n<!-- demo: begin -->\nold\n<!-- demo: end -->\nafter\n")
    assert run_app(tables, [str(page), str(folder)]) == 0
    lines = page.read_text().splitlines()
    assert "| blur 1 px | 0.0500 | **+0.0020 [+0.0010, +0.0030]** |" in lines
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    # A second part stands beside the first; of other tiles it is refused.
    more = tmp_path / "demo.2"
    more.mkdir()
    for reference, code in ((0.95, 0), (0.96, 5)):
        results = (replace(result, reference_cosine=reference, more_fragile=False),)
        parts = {f"{name}-more": replace(found, stress=results) for name, found in made.accuracy.candidates.items()}
        changed = made.model_copy(update={"accuracy": replace(made.accuracy, candidates=parts)})
        (more / REPORT_FILE).write_text(changed.model_dump_json())
        assert run_app(tables, [str(page), str(folder), str(more)]) == code
    cell = "+0.0020 [+0.0010, +0.0030]"
    assert f"| blur 1 px | 0.0500 | **{cell}** | {cell} |" in page.read_text().splitlines()
    (folder / REPORT_FILE).write_text(made.model_dump_json())
    assert run_app(tables, [str(page), str(folder)]) == 5


def test_every_place_is_on_every_simulated_scan(tiles: Path, tmp_path: Path) -> None:
    assert run_app(scans, [f"{tiles}@test", "--count", "4", "--out", str(tmp_path / "scans")]) == 0
    source = open_tiles(str(tmp_path / "scans"), role="evaluation")
    records = list(source.records())
    assert len(records) == 4 * 4 * 2 and len({record.label for record in records}) == 2
    places = {(record.position, record.group) for record in records}
    assert len(places) == 4 and len({(record.scanner, record.stain) for record in records}) == 8
    one, two = (source.read(record).astype(int) for record in records[:2])
    assert np.abs(one - two).mean() > 1
