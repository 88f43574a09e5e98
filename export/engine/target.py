"""The TensorRT targets of an export: graphs, engines, and how the bundle is put together."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.export.config import ExportConfig
from atlas_edge.export.engine.build import TensorRTChoice, check_options, find_tensorrt
from atlas_edge.export.engine.bundle import EngineBundle, build_parts
from atlas_edge.export.engine.child import DEFAULT_BATCH_PROFILE
from atlas_edge.export.engine.graphs import EngineGraphs, engine_graphs
from atlas_edge.export.steps import Steps
from atlas_edge.models.graph import export_onnx
from atlas_edge.spec import Precision

if TYPE_CHECKING:
    from atlas_edge.export.build import Sources


def check_engine_options(config: ExportConfig) -> TensorRTChoice:
    """Find the library, and refuse options that it lacks, before any work.

    Raises:
        RuntimeMissing: Neither library can build here.
        UsageError: An option that the library lacks, or a GPU that the precision does not run on.
    """
    choice = find_tensorrt(config.target)
    check_options(choice.library, precision=config.precision, **_options(config))
    return choice


def _options(config: ExportConfig) -> dict[str, Any]:
    """Fields of `EngineOptions`."""
    batch = config.batch
    return {
        "compute_capabilities": config.compute_capabilities,
        "batch_profile": (batch[0], batch[len(batch) // 2], batch[-1]) if batch else DEFAULT_BATCH_PROFILE,
        "refittable": config.refit,
        "strip_weights": config.strip,
        "hardware_compatible": config.hardware_compatible,
        "version_compatible": config.version_compatible,
        "batch_independent": config.batch_independent,
        "timing_cache": config.timing_cache,
    }


def quantize_for_engine(config: ExportConfig, sources: "Sources", scratch: Path) -> EngineGraphs:
    """Write the graphs that the engines are built from."""
    model, batch = sources.model, config.fixed_batch
    full = (
        sources.graph if batch is None else export_onnx(model.module, model.spec, scratch / "fixed.onnx", batch=batch)
    )
    return engine_graphs(
        model.module,
        model.spec,
        full,
        sources.calibration,
        scratch,
        precision=config.precision,
        recipe=config.recipe,
        quantize_attention=config.quantize_attention,
        batch=batch,
        ranges=sources.ranges,
    )


def build_engines(
    config: ExportConfig, graph: Path, fp16_graph: Path | None, folder: Path, steps: Steps
) -> tuple[EngineBundle, dict[str, object]]:
    """Build the engines into the bundle; returns them with what is worth reporting."""
    choice = find_tensorrt(config.target)
    steps.note(f"{choice.library.title} {choice.version}: {choice.reason}")
    parts = build_parts(
        folder,
        graph,
        choice=choice,
        precision=config.precision,
        fp16_graph=fp16_graph,
        **_options(config),
        float_linears=config.int8_recipe.exclude if config.precision is not Precision.FP16 else (),
    )
    details: dict[str, object] = {"library_reason": choice.reason}
    for precision, report in ((config.precision, parts.report), (Precision.FP16, parts.beside)):
        if report is not None:
            details[f"engine_{precision.value}"] = asdict(report)
            gpus = ", ".join(report.compute_capabilities) or "of this GPU"
            steps.note(
                f"{precision.value} engine for compute capability {gpus}: "
                f"{report.size_bytes / 1e6:.1f} MB in {report.build_seconds:.1f} s"
            )
    return parts, details
