"""From an encoder to the ONNX graphs that its engines are built from."""

from dataclasses import asdict
from pathlib import Path

from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.quantize.recipe import Recipe, onnx_recipe
from atlas_edge.spec import Precision

_ATTENTION_TILES = 32


@foreign_errors("the network cannot be brought to this precision")
def engine_graphs(job: Job, scratch: Path) -> Quantized:
    """Write the graphs of a precision, with FP16 for what is not quantized, and FP16 beside INT8 and FP8.

    Args:
        job: What is made; the recipe that suits its precision is taken where it has none.
        scratch: Folder for the graphs.

    Raises:
        UsageError: A recipe with attention for more tokens than fused INT8 attention takes.
        InputError: Activations are not finite on calibration tiles, or there are no calibration tiles.
    """
    full, precision = job.full_graph(scratch), job.precision
    if precision is Precision.FP32:
        return Quantized(model=full)
    from atlas_edge.quantize.onnx.half import cast_onnx

    if precision is Precision.BF16:
        bf16 = scratch / "bf16.onnx"
        cast_onnx(full, bf16, Precision.BF16)
        return Quantized(model=bf16)
    from atlas_edge.quantize.onnx.half_range import RANGE_TILES, cast_in_range

    half, few = scratch / "fp16.onnx", job.some_tiles(RANGE_TILES)
    measured = cast_in_range(full, half, few)
    if precision is Precision.FP16:
        return Quantized(model=half, quantization={"fp16_range": asdict(measured)})
    from atlas_edge.quantize.onnx import attention_qdq
    from atlas_edge.quantize.onnx.engine_graph import engine_graph
    from atlas_edge.quantize.onnx.qdq import quantize_onnx

    recipe, module, spec = job.recipe or engine_recipe(precision), job.model.module, job.model.spec
    if recipe.attention:
        attention_qdq.check_attention_fits(spec)
    int8, out = scratch / "int8.onnx", scratch / f"{precision.value}.onnx"
    details = quantize_onnx(module, spec, job.calibration, int8, recipe=recipe, batch=job.batch, ranges=job.ranges)
    found = engine_graph(int8, out, precision=precision, tiles=few)
    assert found is not None
    details["attention_products"] = 0
    if recipe.attention:
        few = job.some_tiles(_ATTENTION_TILES)
        details["attention_products"] = attention_qdq.quantize_attention(out, out, few)
    return Quantized(model=out, beside=half, quantization={**details, "fp16_range": asdict(found)})


def engine_recipe(precision: Precision) -> Recipe:
    """The recipe that suits an engine's precision."""
    if precision is Precision.FP8:
        # E4M3 keeps outliers by its exponent: SmoothQuant has nothing to gain, and the range must not be clipped.
        return Recipe(name="tensorrt-fp8", smooth_alphas=(-1.0,), calibrator="max", patch_embed=False)
    return onnx_recipe()
