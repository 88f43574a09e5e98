"""`report.html`: one file that needs nothing else, not even a network."""

from collections.abc import Mapping, Sequence
from typing import Any

from atlas_edge.bench.report.markdown import report_subtitle, report_tables, report_title, report_warnings
from atlas_edge.bench.report.pictures import WorstTile
from atlas_edge.bench.report.plots import report_plots
from atlas_edge.bench.report.rows import Rows
from atlas_edge.bench.report.schema import REPORT_FILE, Report
from atlas_edge.cli import require_module

_MARKED = ("PASS", "FAIL", "INCONCLUSIVE", "YES")


def report_html(report: Report, worst: Mapping[str, tuple[WorstTile, ...]], *, json_sha256: str | None = None) -> str:
    """The report as a self-contained page; its policy forbids every request.

    Args:
        report: What was measured.
        worst: Candidate -> its worst tiles.
        json_sha256: Of the `report.json` beside the page: who signs a printed page signs those figures.

    Raises:
        RuntimeMissing: jinja2 or matplotlib is not installed.
    """
    tiles = report.evaluation
    return page_html(
        title=report_title(report),
        subtitle=report_subtitle(report),
        verdict=None if report.gate is None else report.gate.verdict.value,
        warnings=report_warnings(report),
        tables=report_tables(report),
        provenance=_provenance(report),
        json_sha256=json_sha256,
        judged="Gate",
        plots=report_plots(report),
        worst=[(name, shown) for name, shown in worst.items() if shown],
        tiles_name="" if tiles is None else tiles.name,
        licence=None if tiles is None else tiles.licence,
        notes=() if report.accuracy is None else report.accuracy.notes,
    )


def page_html(
    *,
    title: str,
    subtitle: str,
    verdict: str | None,
    warnings: Sequence[str],
    tables: Sequence[Rows],
    provenance: Sequence[tuple[str, str]],
    json_file: str = REPORT_FILE,
    json_sha256: str | None = None,
    **parts: Any,
) -> str:
    """A page of this house, with lines to sign.

    Args:
        title: Of the page.
        subtitle: When, where and of what.
        verdict: PASS, FAIL or INCONCLUSIVE; None where nothing is judged.
        warnings: What must not be overlooked.
        tables: One below the other.
        provenance: Name and value of what it was made with.
        json_file: The same figures beside the page.
        json_sha256: Of that file; None leaves out the lines to sign.
        parts: What only a report of tiles has: `plots`, `worst`, `tiles_name`, `licence`, `notes`.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    require_module("jinja2", extra="report")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("atlas_edge.bench.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    of_tiles: dict[str, Any] = {"plots": (), "worst": (), "tiles_name": "", "licence": None, "notes": ()}
    return environment.get_template("report.html.jinja").render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        warnings=warnings,
        tables=tables,
        marked=_MARKED,
        provenance=provenance,
        json_file=json_file,
        json_sha256=json_sha256,
        **{"judged": "Verdict", **of_tiles, **parts},
    )


def _provenance(report: Report) -> list[tuple[str, str]]:
    rows = [("command", " ".join(report.command)), ("schema version", str(report.schema_version))]
    rows += [
        (name, f"{facts.spec.architecture}, {facts.spec.embed_dim} numbers a tile")
        for name, facts in report.encoders.items()
    ]
    rows += [
        (purpose, f"{tiles.name}, {tiles.tiles} tiles, fingerprint {tiles.fingerprint[:16]}…")
        for purpose, tiles in (("evaluation", report.evaluation), ("fit", report.fit))
        if tiles is not None
    ]
    if report.accuracy is not None:
        seconds = f"{report.accuracy.encoding_s:.1f} s encoding, {report.accuracy.statistics_s:.1f} s everything else"
        rows.append(("time", seconds))
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    return [*rows, ("versions", f"Python {report.machine.python}, {versions}")]
