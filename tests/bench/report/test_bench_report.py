"""The files of a report: schema, Markdown, HTML, JUnit, benchmark lists."""

import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.budgets import Budget
from atlas_edge.bench.report.files import write_report
from atlas_edge.bench.report.github_benchmark import bigger_is_better, smaller_is_better
from atlas_edge.bench.report.html import report_html
from atlas_edge.bench.report.junit import junit_xml
from atlas_edge.bench.report.markdown import report_markdown
from atlas_edge.bench.report.pictures import WorstTile
from atlas_edge.bench.report.schema import Report, read_report
from atlas_edge.bench.speed.sweep import Setting, Sweep, SweepPoint
from atlas_edge.errors import InputError, UsageError
from reports import report
from support import ROOT

BUDGET = Budget(max_drop_pp=1.0, max_knn_drop_pp=0.6, min_cosine=1.0)
FILES = {
    "report.json", "report.md", "report.html", "junit.xml", "benchmark-smaller-is-better.json",
    "benchmark-bigger-is-better.json",
}  # fmt: skip


def test_json_reads_back_as_it_was_infinite_ends_included(tmp_path: Path) -> None:
    made = report(budget=BUDGET)
    write_report(made, tmp_path / "r")
    assert {path.name for path in (tmp_path / "r").iterdir()} == FILES
    assert read_report(tmp_path / "r") == made == read_report(tmp_path / "r" / "report.json")
    assert made.accuracy is not None
    one = made.accuracy.candidates["int8"]
    endless = Interval(estimate=0.0, low=float("-inf"), high=float("inf"), units=1, unit="group")
    accuracy = made.accuracy.__class__(
        reference="ref",
        scores={},
        candidates={
            "int8": one.__class__(
                agreement=None, cosines=(), worst_tiles=(), cka=1.0, drops=(), robustness_drop=endless, stress=()
            )
        },
        notes=(),
        encoding_s=0.0,
        statistics_s=0.0,
    )
    again = Report.model_validate_json(made.model_copy(update={"accuracy": accuracy}).model_dump_json())
    assert again.accuracy is not None and again.accuracy.candidates["int8"].robustness_drop == endless


def test_published_schema_is_the_one_that_is_written() -> None:
    published = json.loads((ROOT / "docs/reports/report.schema.json").read_text(encoding="utf-8"))
    assert published == Report.model_json_schema(mode="serialization")
    assert published["properties"]["schema_version"]["const"] == 2


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1}', "[1"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match="is no report of schema version 2"):
        read_report(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_report(tmp_path / "none")


def test_a_taken_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        write_report(report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_markdown_goes_to_the_summary_of_a_workflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_report(report(budget=BUDGET), tmp_path / "r")
    text = summary.read_text()
    assert text.startswith("before\n# Accuracy drop of int8 against ref")
    assert text.removeprefix("before\n").rstrip() == (tmp_path / "r/report.md").read_text().rstrip()


def test_markdown_holds_every_figure() -> None:
    text = report_markdown(report(budget=BUDGET))
    assert "## Gate: FAIL" in text
    assert "| int8 | linear | 0.900 | 0.895 | +0.5 pp [+0.1, +0.9] | 2.0 % [1.0, 3.0] | 0.050 | 0.060 |" in text
    assert "2.00x [1.80, 2.20]" in text
    assert "| int8 | 10.0 | 11.0 | 12.0 | 13.0 | 10.5 ± 1.0 | 10% | 2.00x [1.80, 2.20] |" in text
    assert "| int8 | 100.0 | 5% | 8 | 2.00x [1.80, 2.20] |" in text
    assert "int8 ran in r." in text
    assert "int8: a warning" in text and "a note" in text
    widths = {line.count("|") for line in text.split("## Accuracy drop")[1].split("##")[0].splitlines() if "|" in line}
    assert len(widths) == 1


class _Page(HTMLParser):
    """Collects every attribute that could make a browser ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.addresses.append(value or "")


def test_html_is_whole_and_asks_for_nothing() -> None:
    made = report(budget=BUDGET)
    points = tuple(
        SweepPoint(
            setting=Setting(threads=2, streams=streams, batch=batch),
            tiles_per_s=10.0 * batch * streams,
            rounds_tiles_per_s=(1.0, 2.0),
            behind_best=None,
            as_good=True,
        )
        for streams in (1, 2)
        for batch in (1, 8)
    )
    made = made.model_copy(update={"sweeps": {"int8": Sweep(points=points, best=points[-1])}})
    worst = {"int8": (WorstTile(id="tile<7>", label="a", cosine="0.9", picture="data:image/jpeg;base64,AAAA"),)}
    text = report_html(made, worst)
    page = _Page()
    page.feed(text)
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags and "link" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses), page.addresses
    assert "data:image/jpeg;base64,AAAA" in page.addresses
    # What is left are names of XML namespaces, which nobody fetches.
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text
    assert "tile&lt;7&gt;" in text and "set &lt;1&gt;" in text and "tile<7>" not in text
    for title in ("Latency distribution", "Throughput against batch", "Embedding agreement", "Accuracy against"):
        assert title in text


def test_what_is_signed_is_named_down_to_the_bytes(tmp_path: Path) -> None:
    write_report(report(budget=BUDGET), tmp_path / "r")
    digest = sha256((tmp_path / "r/report.json").read_bytes()).hexdigest()
    text = (tmp_path / "r/report.html").read_text(encoding="utf-8")
    assert "Sign-off" in text and f"report.json with SHA-256 {digest}" in text
    assert "| int8 | r | fp32 | 1.0 MB | abc123 |" in (tmp_path / "r/report.md").read_text(encoding="utf-8")


def test_html_is_the_same_twice() -> None:
    assert report_html(report(), {}) == report_html(report(), {})


def test_junit_fails_where_the_gate_does() -> None:
    root = ElementTree.fromstring(junit_xml(report(budget=BUDGET)))
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert cases["linear probe drop, pp (--max-drop)"].find("failure") is None
    kinds = {name: case.find("failure") for name, case in cases.items()}
    undecided = kinds["kNN probe drop, pp (--max-knn-drop)"]
    assert undecided is not None and undecided.get("type") == "INCONCLUSIVE"
    assert "tiles would settle it" in (undecided.text or "")
    failed = kinds["cosine, 1st percentile (--min-cosine)"]
    assert failed is not None and failed.get("type") == "FAIL"


def test_junit_without_a_gate_has_no_case() -> None:
    assert ElementTree.fromstring(junit_xml(report())).get("tests") == "0"


def test_benchmark_lists_have_the_form_that_the_action_takes() -> None:
    for text in (smaller_is_better(report()), bigger_is_better(report())):
        entries = json.loads(text)
        assert entries and len({entry["name"] for entry in entries}) == len(entries)
        for entry in entries:
            assert set(entry) <= {"name", "unit", "value", "range", "extra"}
            assert isinstance(entry["value"], int | float) and isinstance(entry["unit"], str)
    smaller = {entry["name"]: entry for entry in json.loads(smaller_is_better(report()))}
    assert smaller["int8: linear drop"] == {
        "name": "int8: linear drop", "unit": "pp", "value": 0.5, "range": "± 0.4"
    }  # fmt: skip
    bigger = {entry["name"]: entry["value"] for entry in json.loads(bigger_is_better(report()))}
    assert bigger["int8: throughput"] == 100 and bigger["int8: throughput over the reference"] == 2.0


def test_ticks_of_logarithmic_axes_do_not_run_into_one_another() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from atlas_edge.bench.report.plots import _canvas, _plain_log_ticks

    for low, high in ((3e-4, 7e-3), (1e-7, 0.3), (20, 900)):
        figure, axes = _canvas()
        axes.set(xscale="log", xlim=(low, high))
        _plain_log_ticks(axes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        shown = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        extents = [label.get_window_extent() for label in shown if low <= label.get_position()[0] <= high]
        assert len(extents) > 2
        assert all(left.x1 < right.x0 for left, right in pairwise(extents))
