"""INT8 ONNX: symmetric Q/DQ on every Linear and convolution, one graph for ONNX Runtime and TensorRT."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.models.graph import export_onnx, load_onnx
from atlas_edge.quantize.finetune.trained_ranges import quantize_with_ranges
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.quantize.numerics.stages import unfittable_part
from atlas_edge.quantize.onnx.fakequant import fake_quantize, kind_of, quiet_modelopt, store_in_int8
from atlas_edge.quantize.paths import FITTED, NEAREST, TRAINED
from atlas_edge.quantize.recipe import Recipe, check_merges_nothing, merging_nothing
from atlas_edge.spec import EncoderSpec

if TYPE_CHECKING:
    import onnx
    import torch


def quantize_onnx(
    module: "torch.nn.Module",
    spec: EncoderSpec,
    calibration: Iterable[NDArray[np.uint8]],
    out: Path,
    *,
    recipe: Recipe,
    batch: int | None = None,
    ranges: Path | None = None,
) -> dict[str, Any]:
    """Quantize an encoder and write it as ONNX with explicit Q/DQ.

    Weights are signed INT8 per output channel, activations signed INT8 per tensor, both symmetric (TensorRT takes no
    other form); attention products, LayerNorm, GELU and residuals stay in floating point.

    Args:
        module: Full-precision encoder, `(B, H, W, 3)` uint8 -> `(B, D)` float32. Unchanged.
        spec: Its shape.
        calibration: Batches of tiles, `(B, tile_px, tile_px, 3)` uint8.
        out: ONNX file to write.
        recipe: What to quantize and how.
        batch: Fixed batch size; dynamic when None.
        ranges: Ranges that training found (`trained_ranges`): these are taken, no tiles are asked.

    Returns:
        The recipe, the SmoothQuant strength chosen or the hash of the ranges, the coverage by layer kind, the path
        taken and why blocks were not fitted; goes into the manifest.

    Raises:
        InputError: No calibration tiles, ranges of another network, or a network that ModelOpt or PyTorch's exporter
            cannot quantize or write.
        UsageError: Tokens cannot be merged as asked.
    """
    check_merging(module, recipe)
    if ranges is not None:
        written = write_quantized(merging(module, quantize_with_ranges(module, ranges), recipe), spec, out, batch=batch)
        digest = hashlib.sha256(ranges.read_bytes()).hexdigest()
        return {
            "recipe": recipe.model_dump(mode="json"),
            "method": "quantization-aware distillation, symmetric Q/DQ",
            "path": TRAINED,
            "ranges_sha256": digest,
            **written,
        }
    # A merged token is a mean: the ranges of the network that merges nothing hold it.
    quantized = fake_quantize(module, list(calibration), merging_nothing(recipe))
    written = write_quantized(merging(module, quantized, recipe), spec, out, batch=batch)
    fitted = recipe.weights == "fitted"
    unknown = unfittable_part(module)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "method": "ModelOpt fake quantization, symmetric Q/DQ",
        "path": FITTED if fitted and unknown is None else NEAREST,
        "path_reason": unknown if fitted else None,
        "smooth_alpha": quantized.smooth_alpha,
        **written,
    }


def check_merging(module: "torch.nn.Module", recipe: Recipe) -> None:
    """See that a network can merge as many tokens as a recipe asks for.

    Raises:
        UsageError: It cannot.
    """
    if recipe.merge_tokens == 1:
        return
    from atlas_edge.models.folding.known import unfoldable_part
    from atlas_edge.models.merged_vit import merged_vit

    if merged_vit(module, module, recipe.merge_tokens) is None:
        check_merges_nothing(recipe, "this network", reason=str(unfoldable_part(module)))


def merging(module: "torch.nn.Module", quantized: "torch.nn.Module", recipe: Recipe) -> "torch.nn.Module":
    """A fake-quantized encoder that merges as many tokens as a recipe asks for, its layers shared; itself for none.

    Args:
        module: In full precision.
        quantized: From `fake_quantize`.
        recipe: For which `check_merging` found nothing.
    """
    if recipe.merge_tokens == 1:
        return quantized
    from atlas_edge.models.merged_vit import merged_vit

    merged = merged_vit(module, quantized, recipe.merge_tokens)
    assert merged is not None  # it was checked
    return merged


def write_quantized(
    quantized: "torch.nn.Module", spec: EncoderSpec, out: Path, *, batch: int | None = None
) -> dict[str, Any]:
    """Write a fake-quantized encoder as ONNX with explicit Q/DQ, weights of fewer than 8 bits in INT8.

    Args:
        quantized: From `fake_quantize` or `merging`; `store_in_int8` changes it.
        spec: Its shape.
        out: ONNX file to write.
        batch: Fixed batch size; dynamic when None.

    Returns:
        How many layers are quantized, the coverage by layer kind, and how many tokens each block merges.

    Raises:
        InputError: The graph quantizes other layers than the encoder does, or cannot be written.
    """
    store_in_int8(quantized)
    wanted = [
        name
        for name, layer in quantized.named_modules()
        if hasattr(layer, "weight_quantizer") and layer.weight_quantizer.is_enabled
    ]
    with foreign_errors(f"{kind_of(quantized)} cannot be written as ONNX with Q/DQ"), quiet_modelopt():
        # The dynamo exporter has no translation for ModelOpt's fake quantizers.
        export_onnx(quantized, spec, out, batch=batch, dynamo=False)
    found = {"quantized_layers": len(wanted), "coverage": check_coverage(out, wanted)}
    schedule = getattr(quantized, "schedule", None)
    if schedule is not None:
        found["merged"] = {f"blocks.{index}": count for index, count in schedule.items()}
    return found


def integer_weights(path: Path) -> Iterator[NDArray[np.int32]]:
    """What QuantizeLinear makes of the weights, which the file holds in floating point."""
    from onnx import numpy_helper

    graph = load_onnx(path).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    held |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in held:
            continue
        weight, scale = (numpy_helper.to_array(held[name]) for name in node.input[:2])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        shape = [-1 if index == axis else 1 for index in range(weight.ndim)] if scale.ndim else []
        yield np.rint(weight / scale.reshape(shape)).astype(np.int32)


def check_coverage(path: Path, wanted: list[str]) -> dict[str, str]:
    """Count the layers whose both inputs come from DequantizeLinear, and compare with what was asked for.

    Returns:
        Quantized of all, by operator: `{"MatMul": "48 of 72", "Conv": "1 of 1"}` (a ViT-S; 24 of the 72 products are
        inside attention).

    Raises:
        InputError: Fewer or more than `wanted`, or an invalid graph.
    """
    import onnx

    with foreign_errors(f"{path.name} is no valid ONNX"):
        onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path, load_external_data=False).graph
    producers = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in {"MatMul", "Gemm", "Conv"}]
    quantized = [node for node in products if all(_is_dequantized(name, producers) for name in node.input[:2])]
    if len(quantized) != len(wanted):
        paths = [f".{node.name.replace('/', '.')}." for node in quantized]
        short = [name.removeprefix("backbone.") for name in wanted]
        missing = next((name for name in short if not any(f".{name}." in path for path in paths)), "another")
        raise InputError(
            f"{len(quantized)} products and convolutions carry Q/DQ on both inputs, the recipe asks for {len(wanted)}: "
            f"{missing} is not as it should be",
            hint=f"leave it in floating point: atlas-quantize recipe onnx --exclude '{missing}' --out mine.json",
        )
    total, found = (Counter(node.op_type for node in nodes) for nodes in (products, quantized))
    return {kind: f"{found[kind]} of {count}" for kind, count in sorted(total.items())}


def _is_dequantized(name: str, producers: dict[str, "onnx.NodeProto"]) -> bool:
    # Weights are transposed between their DequantizeLinear and the MatMul.
    node = producers.get(name)
    while node is not None and node.op_type in {"Transpose", "Reshape", "Cast"}:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
