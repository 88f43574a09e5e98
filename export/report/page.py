"""The bundle's `report.html`: the figures of `report.md` on a page with lines to sign, which asks for no network."""

from hashlib import sha256
from typing import TYPE_CHECKING

from atlas_edge.bench.report.html import page_html
from atlas_edge.bench.report.rows import Rows
from atlas_edge.export.report.model_card import about_weights, not_for, tiles_sentence, without_atlas_edge
from atlas_edge.export.report.summary import gate_line, headings, notes, rows

if TYPE_CHECKING:
    from atlas_edge.export.pipeline import ExportResult


def report_page(result: "ExportResult", json_text: str) -> str:
    """The page.

    Args:
        result: What was exported and measured.
        json_text: The `report.json` beside it: who signs the page signs these figures.
    """
    manifest = result.manifest
    verdict = result.verification.verdict
    gate = gate_line(result)
    figures = Rows(
        title="Measured against full precision",
        headings=headings(result),
        rows=tuple((name.strip(), *cells) for name, *cells in rows(result)),
        notes=tuple(([] if gate is None else [f"{gate}."]) + notes(result)),
    )
    plain = without_atlas_edge(manifest).replace("**", "").strip()
    return page_html(
        title=f"{manifest.encoder.name} for {manifest.target.value}, {manifest.precision.value}",
        subtitle=f"Exported by atlas-edge {manifest.created_utc}.",
        verdict=None if verdict is None else verdict.value,
        warnings=[text for text in (not_for(manifest), plain) if text],
        tables=[figures],
        provenance=[
            ("command", " ".join(manifest.command)),
            ("weights", about_weights(manifest.model)),
            ("licence of the weights", manifest.model.licence or "not stated"),
            ("calibration", tiles_sentence(manifest.calibration)),
            ("evaluation", tiles_sentence(manifest.evaluation)),
            ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ],
        json_sha256=sha256(json_text.encode()).hexdigest(),
        judged="Gate",
    )
