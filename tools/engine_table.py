"""Build engines of several encoders in every precision and write a table: `python tools/engine_table.py`.

The table goes between two marks in a Markdown file, so that the figures in docs/tensorrt.md can be made again:

    python tools/engine_table.py docs/tensorrt.md --teacher MODEL --tiles TILES
    python tools/engine_table.py docs/tensorrt.md --kinds
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import Agreement, embedding_agreement
from atlas_edge.bench.accuracy.drop import AccuracyDrop, accuracy_drop
from atlas_edge.bench.selftest.run import selftest_tiles
from atlas_edge.cli import make_app, run_app
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError, InputError
from atlas_edge.export.engine.build import EngineReport, TensorRTChoice, build_engine, find_tensorrt
from atlas_edge.export.engine.graphs import engine_graphs
from atlas_edge.models.graph import export_onnx, onnx_bytes
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.quantize.backend import Job
from atlas_edge.runtimes.tensorrt_library import RTX
from atlas_edge.spec import Precision
from atlas_edge.tiles import TileSource, batches, open_tiles
from parts.engine_kinds import kinds as all_kinds
from parts.engine_kinds import load_kind
from parts.marked import around

BEGIN, END = "<!-- engine table: begin -->", "<!-- engine table: end -->"
KINDS_BEGIN, KINDS_END = "<!-- engine kinds: begin -->", "<!-- engine kinds: end -->"
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.FP8)
_PIECE = 8
_CALIBRATION_TILES = 64

HELP = """Build engines of several encoders in every precision, here, and write sizes, build times and agreement.

Example:

    python tools/engine_table.py docs/tensorrt.md --teacher ../shared/models/dinov2-vits14
"""

app = make_app("engine_table", HELP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Tiles with labels; `fit_*` fit the probe, the rest judge."""

    name: str
    fit_tiles: NDArray[np.uint8]
    fit_labels: list[str]
    tiles: NDArray[np.uint8]
    labels: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine: `total_seconds` includes the child process, parsing and the rules; or why there is none."""

    model: str
    precision: Precision
    engine: EngineReport | None = None
    onnx_bytes: int = 0
    total_seconds: float = 0.0
    agreement: Agreement | None = None
    drop: AccuracyDrop | None = None
    path: str = ""
    refused: str = ""


@app.default
def engine_table(
    document: Path,
    /,
    *,
    teacher: Path | None = None,
    tiles: Path | None = None,
    fit_limit: int = 500,
    eval_limit: int = 600,
    patches: str = "8,14,16",
    kinds: bool = False,
) -> None:
    """Write the table.

    Args:
        document: Markdown file with the two marks.
        teacher: Model folder with trained weights, put first; its graphs are scored on `tiles`.
        tiles: Labelled tiles with train and test splits; without them every graph is compared on synthetic tiles.
        fit_limit: Tiles that fit the probe.
        eval_limit: Tiles that judge.
        patches: Patch sides of `atlas2-s`.
        kinds: Write the other table instead: a small network of every architecture kind, without FP32.
    """
    marks = (KINDS_BEGIN, KINDS_END) if kinds else (BEGIN, END)
    around(document, *marks)  # before engines are built for minutes
    choice = find_tensorrt(RTX)
    if kinds:
        _write(document, _kinds_markdown(_kind_rows(choice), choice), marks)
        return
    labelled = _labelled(tiles, fit_limit, eval_limit) if tiles is not None else None
    rows: list[Row] = []
    if teacher is not None:
        rows += _rows(load_model(str(teacher)), teacher.name, choice, labelled)
    for patch in map(int, filter(None, patches.split(","))):
        rows += _rows(load_model("atlas2-s", patch=patch), f"atlas2-s, patch {patch} (random weights)", choice, None)
    _write(document, _markdown(rows, choice, labelled), marks)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def _kind_rows(choice: TensorRTChoice) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in all_kinds():
            rows += _rows(load_kind(name, Path(folder)), name, choice, None, without=(Precision.FP32,))
    return rows


def _labelled(path: Path, fit_limit: int, eval_limit: int) -> Labelled:
    fit, judge = (open_tiles(path, role=role) for role in ("calibration", "evaluation"))
    fit_tiles, fit_labels = _read(fit, fit_limit)
    judge_tiles, judge_labels = _read(judge, eval_limit)
    return Labelled(name=judge.name, fit_tiles=fit_tiles, fit_labels=fit_labels, tiles=judge_tiles, labels=judge_labels)


def _read(source: TileSource, limit: int) -> tuple[NDArray[np.uint8], list[str]]:
    records = list(source.records())
    # Spread over the source, which is often sorted by class.
    chosen = [records[int(index)] for index in np.linspace(0, len(records) - 1, min(limit, len(records)))]
    labels = [record.label for record in chosen if record.label is not None]
    if len(labels) != len(chosen):
        raise InputError(f"{source.name} has tiles without labels", hint="leave --tiles out")
    pieces = [piece.pixels for piece in batches(source, chosen, size=64, tile_px=224, fit="exact")]
    return np.concatenate(pieces), labels


def _rows(
    model: LoadedModel,
    name: str,
    choice: TensorRTChoice,
    labelled: Labelled | None,
    *,
    without: Sequence[Precision] = (),
) -> list[Row]:
    synthetic = selftest_tiles(model.spec)
    source = synthetic if labelled is None else labelled.fit_tiles[: 4 * _CALIBRATION_TILES]
    calibration = [source[start : start + _PIECE] for start in range(0, len(source), _PIECE)]
    judged = synthetic[:32] if labelled is None else labelled.tiles
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        full = export_onnx(model.module, model.spec, scratch / "fp32.onnx")
        job = Job(model=model, graph=full, calibration=calibration)
        reference = _embed(full, model, judged)
        fit = None if labelled is None else _embed(full, model, labelled.fit_tiles)
        for precision in [precision for precision in PRECISIONS if precision not in without]:
            try:
                made = engine_graphs(replace(job, precision=precision), scratch)
            except AtlasError as error:
                rows.append(Row(model=name, precision=precision, refused=error.message))
                continue
            graph, quantization = made.model, made.quantization or {}
            started = time.perf_counter()
            engine = build_engine(graph, scratch / "engine", library=choice.library, precision=precision)
            seconds = time.perf_counter() - started
            found = _embed(graph, model, judged)
            drop = None
            if labelled is not None and fit is not None:
                drop = accuracy_drop(
                    fit_features=fit,
                    fit_labels=labelled.fit_labels,
                    reference=reference,
                    candidate=found,
                    labels=labelled.labels,
                )
            rows.append(
                Row(
                    model=name,
                    precision=precision,
                    engine=engine,
                    onnx_bytes=onnx_bytes(graph),
                    total_seconds=seconds,
                    agreement=embedding_agreement(reference, found),
                    drop=drop,
                    path=quantization.get("path", ""),
                )
            )
            print(f"{name} {precision}: {seconds:.1f} s", file=sys.stderr)
    return rows


def _embed(graph: Path, model: LoadedModel, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    encoder: Encoder = OnnxEncoder(graph, model.spec)
    try:
        return np.concatenate([encoder.encode(tiles[at : at + _PIECE]) for at in range(0, len(tiles), _PIECE)])
    finally:
        encoder.close()


def _markdown(rows: Sequence[Row], choice: TensorRTChoice, labelled: Labelled | None) -> str:
    judged = "synthetic tiles" if labelled is None else f"{len(labelled.tiles)} test tiles of {labelled.name}"
    if labelled is not None:
        judged += f" (the probe fitted on {len(labelled.fit_tiles)} others)"
    lines = [
        f"Built with {choice.library.title} {choice.version} on a machine without a GPU; batch 1 to 64, tuned for 32. "
        f"Agreement and drop are of the very ONNX in ONNX Runtime on the CPU: trained weights on {judged}, random "
        "weights on 32 synthetic tiles. No engine was run.",
        "",
        "| encoder | precision | for | engine MB | ONNX MB | build s | with start and parsing s | Linears quantized | "
        "cosine median | p1 | drop pp (95 %) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        engine, agreement = row.engine, row.agreement
        if engine is None or agreement is None:
            raise InputError(f"{row.model} in {row.precision}: {row.refused}", hint="leave it out")
        graph = engine.graph
        drop = "" if row.drop is None else f"{row.drop.drop_pp:.2f} ({row.drop.low_pp:.2f} to {row.drop.high_pp:.2f})"
        lines.append(
            f"| {row.model} | {row.precision} | {', '.join(engine.compute_capabilities)} | "
            f"{engine.size_bytes / 1e6:.1f} | {row.onnx_bytes / 1e6:.1f} | "
            f"{engine.build_seconds:.1f} | {row.total_seconds:.1f} | "
            f"{graph.quantized_linears} of {graph.linears} | {agreement.cosine_median:.5f} | "
            f"{agreement.cosine_p1:.5f} | {drop} |"
        )
    return "\n".join(lines)


def _kinds_markdown(rows: Sequence[Row], choice: TensorRTChoice) -> str:
    lines = [
        f"Two blocks of each kind with random weights, built with {choice.library.title} {choice.version} without a "
        "GPU; agreement is of the very ONNX in ONNX Runtime on 32 synthetic tiles. No engine was run.",
        "",
        "| kind | precision | engine MB | quantized by | Linears quantized | cosine median | p1 |",
        "|---|---|---:|---|---|---:|---:|",
    ]
    for row in rows:
        if row.engine is None or row.agreement is None:
            lines.append(f"| {row.model} | {row.precision} | none: {row.refused} | | | | |")
            continue
        graph = row.engine.graph
        lines.append(
            f"| {row.model} | {row.precision} | {row.engine.size_bytes / 1e6:.1f} | {row.path} | "
            f"{graph.quantized_linears} of {graph.linears} | {row.agreement.cosine_median:.5f} | "
            f"{row.agreement.cosine_p1:.5f} |"
        )
    return "\n".join(lines)


def _write(document: Path, table: str, marks: tuple[str, str]) -> None:
    before, after = around(document, *marks)
    document.write_text(f"{before}{marks[0]}\n{table}\n{marks[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
