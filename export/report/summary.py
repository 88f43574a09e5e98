"""An export's figures as a table on the terminal, as Markdown and as JSON: one list of rows serves all three."""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from atlas_edge.bench.speed.timing import EncoderSpeed
from atlas_edge.export.backends.base import backend_of
from atlas_edge.quantize.paths import path_sentence

if TYPE_CHECKING:
    from atlas_edge.export.pipeline import ExportResult

REPORT_SCHEMA_VERSION = 1
TIMED = "Timed: uint8 tiles in memory -> float32 embeddings in memory; decoding is not included."

Row = tuple[str, str, str]


def rows(result: "ExportResult") -> list[Row]:
    """`(figure, reference, bundle)`; an empty cell where a figure does not apply."""
    agreement = result.verification.agreement
    found: list[Row] = [("model files", _megabytes(result.reference_size_bytes), _megabytes(result.size_bytes))]
    found += _speed_rows(result)
    found += [
        ("cosine, median", "1", _cosine(agreement.cosine_median)),
        ("cosine, 1st percentile", "1", _cosine(agreement.cosine_p1)),
        ("cosine, worst tile", "1", _cosine(agreement.cosine_worst)),
    ]
    tokens = result.verification.tokens
    if tokens is not None:
        found += [
            ("cosine of patch tokens, median", "1", _cosine(tokens.cosine_median)),
            ("cosine of patch tokens, 1st percentile", "1", _cosine(tokens.cosine_p1)),
        ]
    for method, name in (("linear", "linear probe"), ("knn", "kNN probe")):
        drop = result.verification.drops.get(method)
        if drop is None:
            continue
        found.append((f"{name}, balanced accuracy", f"{drop.reference_score:.3f}", f"{drop.candidate_score:.3f}"))
        found.append(("  drop, 95 % interval", "", f"{drop.drop_pp:+.1f} pp [{drop.low_pp:+.1f}, {drop.high_pp:+.1f}]"))
        found.append(("  changed predictions", "", f"{drop.flips:.1%}"))
    return found


def headings(result: "ExportResult") -> Row:
    """Column titles."""
    manifest = result.manifest
    bundle = f"{manifest.target.value} {manifest.precision.value}"
    return ("", "reference, full precision", f"{bundle} (its ONNX)" if result.not_run else bundle)


def notes(result: "ExportResult") -> list[str]:
    """What must be read with the table."""
    verification = result.verification
    path = path_sentence(result.manifest.quantization)
    found = [] if path is None else [f"{path[0].upper()}{path[1:]}."]
    if result.speed is not None:
        found.append(TIMED)
        found += [
            f"reference: {result.speed.encoders['reference'].runtime}",
            f"bundle: {result.speed.encoders['bundle'].runtime}",
        ]
        found += [f"speed: {warning}" for warning in result.speed.warnings]
    if verification.drops:
        drop = verification.drops["linear"]
        found.append(
            f"Probes fitted on {verification.fit_tiles} tiles by the reference, tested on {verification.eval_tiles}; "
            f"interval by {drop.unit} ({drop.units})."
        )
    else:
        found.append("No probe: the tiles have no labels.")
    encoder = result.manifest.encoder
    if verification.tokens is not None:
        found.append(f"Beside the embedding: {encoder.tokens}, compared on {verification.tokens.tiles} tiles.")
    if encoder.own_pooling is not None:
        found.append(f"Pooling {encoder.pooling} was asked for; the model's own is {encoder.own_pooling}.")
    found += [f"Taken for granted: {assumption}." for assumption in result.manifest.model.assumptions]
    if result.synthetic:
        found.append("SYNTHETIC tiles: these figures say nothing about tissue.")
    if encoder.random_weights:
        found.append("RANDOM weights: these figures say nothing about a trained encoder.")
    if encoder.demonstration:
        found.append("DEMONSTRATION student: its figures are its own, not those of Atlas 2-S.")
    if result.not_run:
        found.append(f"Not run here: {result.not_run}.")
    return found


def gate_line(result: "ExportResult") -> str | None:
    """The gate's verdict with its arithmetic, or None without a budget."""
    verification, budget = result.verification, result.manifest.config.get("max_drop_pp")
    if verification.verdict is None:
        return None
    drop = verification.drops["linear"]
    line = f"gate: {verification.verdict.value}: drop at most {drop.high_pp:+.2f} pp (95 %), budget {budget:g} pp"
    if verification.tiles_to_settle is not None:
        line += f"; about {verification.tiles_to_settle} {drop.unit}s would settle it"
    return line


def table(result: "ExportResult") -> Table:
    """For the terminal."""
    title = f"{result.manifest.encoder.name} -> {result.folder}"
    built = Table(title=title, title_justify="left", header_style="bold")
    for heading, justify in zip(headings(result), ("left", "right", "right"), strict=True):
        built.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows(result):
        built.add_row(*row)
    return built


def report_markdown(result: "ExportResult") -> str:
    """`report.md`."""
    lines = [f"# {result.manifest.encoder.name}: {result.manifest.target.value} {result.manifest.precision.value}", ""]
    lines += ["| " + " | ".join(headings(result)) + " |", "|---|---:|---:|"]
    lines += [f"| {name.strip()} | {reference} | {bundle} |" for name, reference, bundle in rows(result)]
    lines += ["", *(f"- {note}" for note in notes(result))]
    gate = gate_line(result)
    if gate:
        lines += ["", f"**{gate}**"]
    return "\n".join(lines) + "\n"


def report_json(result: "ExportResult", *, details: dict[str, Any] | None = None) -> str:
    """`report.json`, and what `--json` prints."""
    return json.dumps(as_dict(result, details=details), indent=2, default=_plain, allow_nan=False) + "\n"


def as_dict(result: "ExportResult", *, details: dict[str, Any] | None = None) -> dict[str, Any]:
    """All figures, raw samples included."""
    report: dict[str, Any] = _finite(
        {
            "schema_version": REPORT_SCHEMA_VERSION,
            "model": result.manifest.encoder.model_dump(mode="json"),
            "target": result.manifest.target.value,
            "precision": result.manifest.precision.value,
            "quantization": _path(result),
            "bundle": result.folder.name,
            "verification": result.verification.as_dict(),
            "speed": asdict(result.speed) if result.speed else None,
            "size_bytes": result.size_bytes,
            "reference_size_bytes": result.reference_size_bytes,
            "not_run": result.not_run,
            "synthetic_tiles": result.synthetic,
            "seconds": result.seconds,
            "build": details or {},
        }
    )
    return report


def next_command(result: "ExportResult") -> str:
    """What a user would do next."""
    return backend_of(result.manifest.target).next_command(result.folder)


def _path(result: "ExportResult") -> dict[str, Any] | None:
    found = result.manifest.quantization or {}
    kept = ("method", "path", "path_reason", "smooth_alpha", "coverage")
    return {key: found[key] for key in kept if key in found} or None


def _speed_rows(result: "ExportResult") -> list[Row]:
    if result.speed is None:
        return []
    reference, bundle, eager = (result.speed.encoders[name] for name in ("reference", "bundle", "PyTorch"))
    found = [
        ("latency of one tile, p50", f"{reference.latency.p50_ms:.1f} ms", f"{bundle.latency.p50_ms:.1f} ms"),
        ("latency of one tile, p99", f"{reference.latency.p99_ms:.1f} ms", f"{bundle.latency.p99_ms:.1f} ms"),
        ("throughput", _rate(reference), _rate(bundle)),
        ("  over the reference", "", _interval(bundle)),
    ]
    ratio, own = bundle.throughput_ratio, eager.throughput_ratio
    if ratio is not None and own is not None:
        found.append(("  over PyTorch eager", f"{1 / own.estimate:.2f}x", f"{ratio.estimate / own.estimate:.2f}x"))
    return found


def _rate(speed: EncoderSpeed) -> str:
    return f"{speed.throughput.tiles_per_s:.0f} tiles/s"


def _interval(speed: EncoderSpeed) -> str:
    ratio = speed.throughput_ratio
    return "" if ratio is None else f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _cosine(value: float) -> str:
    return f"{value:.5f}"


def _plain(value: Any) -> Any:
    if hasattr(value, "value"):
        return value.value
    return str(value)


def _finite(value: Any) -> Any:
    # JSON has no NaN: a figure that does not exist (the interval of one slide) is null.
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
