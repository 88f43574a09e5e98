"""From an encoder to the ONNX graphs that its engines are built from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.spec import EncoderSpec, Precision

if TYPE_CHECKING:
    from torch import nn

    from atlas_edge.quantize.recipe import Recipe

_ATTENTION_TILES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGraphs:
    """Graphs of one precision.

    Attributes:
        graph: For the engine that was asked for.
        fp16: For the engine beside it; None where that would be the same or is not wanted.
        quantization: Recipe, coverage and FP16 range, for the manifest; None for FP32.
    """

    graph: Path
    fp16: Path | None
    quantization: dict[str, Any] | None


@foreign_errors("the network cannot be brought to this precision")
def engine_graphs(
    module: "nn.Module",
    spec: EncoderSpec,
    fp32_graph: Path,
    calibration: Sequence[NDArray[np.uint8]],
    scratch: Path,
    *,
    precision: Precision,
    recipe: "Recipe | None" = None,
    quantize_attention: bool = False,
    batch: int | None = None,
    ranges: Path | None = None,
) -> EngineGraphs:
    """Write the graphs of a precision, with FP16 for what is not quantized, and FP16 beside INT8 and FP8.

    Args:
        module: Full precision, in PyTorch.
        spec: Its shape.
        fp32_graph: Its ONNX, with the batch (fixed or dynamic) that the engine shall have.
        calibration: Batches of calibration tiles.
        scratch: Folder for the graphs.
        precision: Of the engine.
        recipe: INT8 recipe; the one that suits the precision when None.
        quantize_attention: Quantize attention, too, whatever the recipe says; INT8 only.
        batch: Fixed batch, or None.
        ranges: See `quantize_onnx`; for INT8.

    Raises:
        UsageError: A recipe with attention for more tokens than fused INT8 attention takes.
        InputError: Activations are not finite on calibration tiles, or there are no calibration tiles.
    """
    if precision is Precision.FP32:
        return EngineGraphs(graph=fp32_graph, fp16=None, quantization=None)
    from atlas_edge.quantize.onnx.half import cast_onnx

    if precision is Precision.BF16:
        bf16 = scratch / "bf16.onnx"
        cast_onnx(fp32_graph, bf16, Precision.BF16)
        return EngineGraphs(graph=bf16, fp16=None, quantization=None)
    from atlas_edge.quantize.onnx.half_range import RANGE_TILES, cast_in_range

    half, few = scratch / "fp16.onnx", np.concatenate(calibration)[:RANGE_TILES]
    measured = cast_in_range(fp32_graph, half, few)
    if precision is Precision.FP16:
        return EngineGraphs(graph=half, fp16=None, quantization={"fp16_range": asdict(measured)})
    from atlas_edge.quantize.onnx import attention_qdq
    from atlas_edge.quantize.onnx.engine_graph import engine_graph
    from atlas_edge.quantize.onnx.qdq import quantize_onnx

    recipe = recipe or _recipe(precision)
    if quantize_attention:
        recipe = recipe.model_copy(update={"name": f"{recipe.name}-attention", "attention": True})
    if recipe.attention:
        attention_qdq.check_attention_fits(spec)
    int8, out = scratch / "int8.onnx", scratch / f"{precision.value}.onnx"
    details = quantize_onnx(module, spec, calibration, int8, recipe=recipe, batch=batch, ranges=ranges)
    found = engine_graph(int8, out, precision=precision, tiles=few)
    assert found is not None
    details["attention_products"] = 0
    if recipe.attention:
        few = np.concatenate(calibration)[:_ATTENTION_TILES]
        details["attention_products"] = attention_qdq.quantize_attention(out, out, few)
    return EngineGraphs(graph=out, fp16=half, quantization={**details, "fp16_range": asdict(found)})


def _recipe(precision: Precision) -> "Recipe":
    from atlas_edge.quantize.recipe import Recipe, default_recipe
    from atlas_edge.spec import Target

    if precision is Precision.FP8:
        # E4M3 keeps outliers by its exponent: SmoothQuant has nothing to gain, and the range must not be clipped.
        return Recipe(name="tensorrt-fp8", smooth_alphas=(-1.0,), calibrator="max", patch_embed=False)
    return default_recipe(Target.TENSORRT).model_copy(update={"patch_embed": False})
