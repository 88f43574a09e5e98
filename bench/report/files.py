"""The folder that `--report` writes: JSON, Markdown, HTML, JUnit and two benchmark lists."""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_edge.bench.report.github_benchmark import BIGGER_FILE, SMALLER_FILE, bigger_is_better, smaller_is_better
from atlas_edge.bench.report.html import report_html
from atlas_edge.bench.report.junit import junit_xml
from atlas_edge.bench.report.markdown import report_markdown
from atlas_edge.bench.report.pictures import WorstTile
from atlas_edge.bench.report.schema import REPORT_FILE, Report
from atlas_edge.cli import require_module
from atlas_edge.system.atomic import atomic_folder, check_vacant

if TYPE_CHECKING:
    from rich.console import Console

# GitHub Actions shows what is appended to this file on the run's page.
_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_HTML_FILE = "report.html"
_MARKS = (REPORT_FILE, _HTML_FILE)


def check_report_folder(folder: Path | None, *, overwrite: bool) -> None:
    """Refuse before anything is measured what would fail when the report is written.

    Raises:
        UsageError: The folder is taken, or is a file.
        InputError: Nothing may be written there.
        RuntimeMissing: jinja2 or matplotlib is not installed.
    """
    if folder is None:
        return
    check_vacant(folder, marks=_MARKS, overwrite=overwrite)
    for module in ("jinja2", "matplotlib"):
        require_module(module, extra="report")


def write_report(
    report: Report,
    folder: Path,
    *,
    overwrite: bool = False,
    worst: Mapping[str, tuple[WorstTile, ...]] | None = None,
    screen: "Console | None" = None,
) -> None:
    """Write all files at once, and append the Markdown to `$GITHUB_STEP_SUMMARY` where that is set.

    Args:
        report: What was measured.
        folder: Where; it appears complete or not at all.
        overwrite: Replace an existing folder.
        worst: Candidate -> pictures of its worst tiles, for the HTML only.
        screen: Told where the report is.

    Raises:
        UsageError: The folder is taken.
        RuntimeMissing: jinja2 or matplotlib is not installed.
    """
    markdown = report_markdown(report)
    data = report.model_dump_json(indent=2) + "\n"
    texts = {
        REPORT_FILE: data,
        "report.md": markdown,
        _HTML_FILE: report_html(report, worst or {}, json_sha256=sha256(data.encode()).hexdigest()),
        "junit.xml": junit_xml(report),
        SMALLER_FILE: smaller_is_better(report),
        BIGGER_FILE: bigger_is_better(report),
    }
    with atomic_folder(folder, marks=_MARKS, overwrite=overwrite) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")  # the hash is of these bytes
    summary = os.environ.get(_SUMMARY_VARIABLE)
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown + "\n")
    if screen is not None:
        screen.print(f"written: {folder}/ ({', '.join(texts)})")
