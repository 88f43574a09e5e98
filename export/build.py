"""From the full-precision graph to the files of a bundle, one function a target."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Encoder
from atlas_edge.errors import RuntimeMissing
from atlas_edge.export.config import ExportConfig
from atlas_edge.export.steps import Steps
from atlas_edge.manifest import Execution
from atlas_edge.models.graph import copy_onnx, export_onnx
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.runtimes.plain import NOTICE_KEY, plain_runtime_notice
from atlas_edge.spec import Precision, Target

if TYPE_CHECKING:
    from atlas_edge.export.engine.bundle import EngineBundle

ONNX_FILE = "model.onnx"
OPENVINO_FILE = "model.xml"

_ATTENTION_TILES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What every build starts from.

    Attributes:
        model: The network in PyTorch.
        graph: Its full-precision ONNX with a dynamic batch.
        calibration: Batches of tiles, `(B, H, W, 3)` uint8.
        ranges: Ranges of INT8 that the model was trained to, for ONNX and TensorRT; None where there are none.
    """

    model: LoadedModel
    graph: Path
    calibration: list[NDArray[np.uint8]]
    ranges: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """The outcome of the quantize step.

    Attributes:
        graph: ONNX file for the ONNX and TensorRT targets.
        openvino: Model in memory for the OpenVINO target.
        fp16_graph: The same in FP16, to be built beside an INT8 or FP8 engine.
        quantization: Recipe and coverage, for the manifest.
    """

    graph: Path | None = None
    fp16_graph: Path | None = None
    openvino: Any = None
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The outcome of the build step.

    Attributes:
        execution: How a runtime loads it, for the manifest.
        details: What is worth reporting of the build (an engine's size and build time).
        not_run: Why the deployed file itself was not run here; None where it was.
        parts: The engines, for a TensorRT target.
    """

    execution: Execution
    details: dict[str, Any] = field(default_factory=dict)
    not_run: str | None = None
    parts: "EngineBundle | None" = None


def quantize(config: ExportConfig, sources: Sources, scratch: Path) -> Quantized:
    """Bring the graph to the precision that was asked for.

    Raises:
        RuntimeMissing: The quantization library is not installed.
        InputError: The graph cannot be brought to that precision.
    """
    if config.target is Target.OPENVINO:
        return _quantize_openvino(config, sources)
    if config.target is Target.ONNX:
        return _quantize_onnx(config, sources, scratch)
    from atlas_edge.export.engine.target import quantize_for_engine

    graphs = quantize_for_engine(config, sources, scratch)
    return Quantized(graph=graphs.graph, fp16_graph=graphs.fp16, quantization=graphs.quantization)


def build(config: ExportConfig, sources: Sources, quantized: Quantized, folder: Path, steps: Steps) -> Built:
    """Write the model files into the bundle.

    Raises:
        RuntimeMissing: Nothing here can build for the target.
        InputError: The graph is refused.
    """
    if config.target is Target.OPENVINO:
        return _build_openvino(config, quantized, folder)
    if config.target is Target.ONNX:
        return _build_onnx(config, quantized, folder)
    return _build_tensorrt(config, quantized, folder, steps)


def open_reference(config: ExportConfig, sources: Sources) -> Encoder:
    """The full-precision encoder, in the CPU runtime of the target."""
    spec = sources.model.spec
    if config.target is Target.OPENVINO:
        from atlas_edge.runtimes.openvino import OpenVinoEncoder

        return OpenVinoEncoder(sources.graph, spec, threads=config.threads, batch=config.fixed_batch)
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    return OnnxEncoder(sources.graph, spec, threads=config.threads, precision="fp32")


def open_built(config: ExportConfig, sources: Sources, built: Built, folder: Path) -> Encoder:
    """The bundle's encoder; for an engine that cannot run here, the very ONNX that it was built from."""
    spec, execution = sources.model.spec, built.execution
    if config.target is Target.OPENVINO:
        from atlas_edge.runtimes.openvino import OpenVinoEncoder

        return OpenVinoEncoder(
            folder / execution.model_file,
            spec,
            inference_precision=execution.inference_precision,
            threads=config.threads,
            batch=execution.batch,
        )
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    path = folder / (execution.fallback_file or execution.model_file)
    return OnnxEncoder(path, spec, threads=config.threads, precision=config.precision.value)


def _quantize_openvino(config: ExportConfig, sources: Sources) -> Quantized:
    import openvino

    if config.precision is Precision.INT8:
        from atlas_edge.quantize.openvino.nncf import quantize_openvino

        recipe, module = config.int8_recipe, sources.model.module
        model, details = quantize_openvino(sources.graph, sources.calibration, recipe=recipe, module=module)
        return Quantized(openvino=model, quantization=details)
    if config.precision is not Precision.FP32:
        from atlas_edge.quantize.openvino.graph import build_openvino, foldable
        from atlas_edge.quantize.openvino.grids import VitGrids

        folded = foldable(sources.model.module)
        if folded is not None:
            return Quantized(openvino=build_openvino(folded, VitGrids(), tile_px=sources.model.spec.tile_px))
    return Quantized(openvino=openvino.Core().read_model(str(sources.graph)))


@foreign_errors("the network cannot be brought to this precision")
def _quantize_onnx(config: ExportConfig, sources: Sources, scratch: Path) -> Quantized:
    out = scratch / "quantized.onnx"
    spec, batch = sources.model.spec, config.fixed_batch
    if config.precision is Precision.INT8:
        from atlas_edge.quantize.onnx.qdq import quantize_onnx

        recipe = config.int8_recipe
        details = quantize_onnx(
            sources.model.module, spec, sources.calibration, out, recipe=recipe, batch=batch, ranges=sources.ranges
        )
        if recipe.attention:
            from atlas_edge.quantize.onnx.attention_qdq import quantize_attention

            few = np.concatenate(sources.calibration)[:_ATTENTION_TILES]
            details["attention_products"] = quantize_attention(out, out, few)
        return Quantized(graph=out, quantization=details)
    full = (
        sources.graph if batch is None else export_onnx(sources.model.module, spec, scratch / "fixed.onnx", batch=batch)
    )
    if config.precision is Precision.FP32:
        return Quantized(graph=full)
    if config.precision is Precision.FP16:
        from atlas_edge.quantize.onnx.half_range import RANGE_TILES, cast_in_range

        found = cast_in_range(full, out, np.concatenate(sources.calibration)[:RANGE_TILES])
        return Quantized(graph=out, quantization={"fp16_range": asdict(found)})
    from atlas_edge.quantize.onnx.half import cast_onnx

    # ONNX Runtime has no BF16 kernels on the CPU: BF16 is then the form in which the weights are stored.
    weights_only = config.target is Target.ONNX and config.precision is Precision.BF16
    cast_onnx(full, out, config.precision, weights_only=weights_only)
    return Quantized(graph=out)


def _build_openvino(config: ExportConfig, quantized: Quantized, folder: Path) -> Built:
    import openvino

    notice = plain_runtime_notice(config.target, config.precision)
    if notice:
        quantized.openvino.set_rt_info(notice, NOTICE_KEY)
    openvino.save_model(
        quantized.openvino, str(folder / OPENVINO_FILE), compress_to_fp16=config.precision is Precision.FP16
    )
    precision: Any = {Precision.FP32: "f32", Precision.FP16: "f16"}.get(config.precision, "bf16")
    return Built(execution=Execution(model_file=OPENVINO_FILE, batch=config.fixed_batch, inference_precision=precision))


def _build_onnx(config: ExportConfig, quantized: Quantized, folder: Path) -> Built:
    notice = plain_runtime_notice(config.target, config.precision)
    copy_onnx(_graph_of(quantized), folder / ONNX_FILE, notes={NOTICE_KEY: notice} if notice else None)
    return Built(execution=Execution(model_file=ONNX_FILE, batch=config.fixed_batch, inference_precision=_rest(config)))


def _build_tensorrt(config: ExportConfig, quantized: Quantized, folder: Path, steps: Steps) -> Built:
    from atlas_edge.export.engine.target import build_engines

    parts, details = build_engines(config, _graph_of(quantized), quantized.fp16_graph, folder, steps)
    return Built(
        execution=parts.execution,
        details=details,
        not_run=f"the engine was built with {parts.choice.library.title} {parts.choice.version} and not run; the "
        "figures are those of the very ONNX that it was built from, in ONNX Runtime on the CPU",
        parts=parts,
    )


def _graph_of(quantized: Quantized) -> Path:
    if quantized.graph is None:
        raise RuntimeMissing("no ONNX graph was made for this target")
    return quantized.graph


def _rest(config: ExportConfig) -> Any:
    return {Precision.FP16: "f16", Precision.BF16: "bf16"}.get(config.precision, "f32")
