"""INT8 for OpenVINO: layer by layer for vision transformers (`graph`), through NNCF for everything else."""

import fnmatch
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import UsageError
from atlas_edge.models.load import free_weights
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.quantize.onnx.fakequant import cosine_error, split_choice
from atlas_edge.quantize.paths import NNCF
from atlas_edge.quantize.recipe import PORTABLE_BITS, Calibrator, Recipe, check_merges_nothing, for_nncf
from atlas_edge.quantize.tiles.augmentation import with_augmented

if TYPE_CHECKING:
    import nncf
    import openvino as ov
    from torch import nn

Tiles = NDArray[np.uint8]


def quantize_openvino(
    onnx_path: Path,
    calibration: Iterable[Tiles],
    *,
    recipe: Recipe,
    module: "nn.Module | None" = None,
    last_use: bool = False,
) -> "tuple[ov.Model, dict[str, Any]]":
    """Quantize an encoder to INT8 for OpenVINO's CPU plugin.

    A vision transformer that can be folded is quantized from `module`, layer by layer: faster, and closer to full
    precision. Anything else goes through NNCF, from its ONNX graph and with `recipe.for_nncf`: each candidate of
    `smooth_alphas` is quantized from a few tiles and judged by its embedding error on others; the best is quantized
    again from all. Only a network with attention is called a transformer there.

    Args:
        onnx_path: Graph with input `tiles` uint8 NHWC and output `embedding` float32; a fixed batch is kept.
        calibration: Batches of tiles, `(B, tile_px, tile_px, 3)` uint8.
        recipe: What to quantize and how.
        module: The same encoder in PyTorch; without it NNCF is taken.
        last_use: Nobody runs `module` after: its weights are freed as soon as they are folded.

    Returns:
        The quantized model, and the recipe, the strength chosen, the coverage, the path taken and why not the faster
        one; the latter go into the manifest.

    Raises:
        InputError: No calibration tiles, or NNCF cannot quantize the network.
        UsageError: `recipe.exclude` names a layer that the graph does not have, or tokens cannot be merged as asked.
    """
    import openvino as ov

    reason = "the recipe asks for it" if recipe.quantizer == "nncf" else "there is its ONNX alone"
    batches = with_augmented(list(calibration), recipe.augmented_share)
    if module is not None and recipe.quantizer == "layers" and any(map(len, batches)):
        from atlas_edge.models.folding.known import unfoldable_part
        from atlas_edge.models.folding.vit import fold_vit
        from atlas_edge.quantize.openvino.graph import quantize_vit

        folded = fold_vit(module)
        if folded is not None:
            if last_use:
                free_weights(module)
            return quantize_vit(folded, batches, recipe)
        reason = unfoldable_part(module) or reason
    check_merges_nothing(recipe, "NNCF", reason=reason)
    recipe = _without_products(for_nncf(recipe))
    model = ov.Core().read_model(onnx_path)
    held_out, statistics_tiles = split_choice(batches, recipe)
    alpha, errors = _choose_alpha(model, held_out, statistics_tiles, recipe)
    quantized = _quantize(model, statistics_tiles, recipe, alpha)
    return quantized, {
        "recipe": recipe.model_dump(mode="json"),
        "method": f"NNCF post-training quantization ({'transformer' if _has_attention(model) else 'no'} model type)",
        "path": NNCF,
        "path_reason": reason,
        "smooth_alpha": alpha,
        "alpha_errors": errors,
        "coverage": count_quantized(quantized),
    }


def _without_products(recipe: Recipe) -> Recipe:
    """NNCF has weights of 8 bits, or of 7; with 7, the products of attention, which have none, stay in float.

    Raises:
        UsageError: Another number of bits.
    """
    if recipe.weight_bits not in (8, PORTABLE_BITS):
        raise UsageError(
            f"NNCF takes weights of 8 bits, or of 7, the recipe asks for {recipe.weight_bits}", hint="leave it out"
        )
    return recipe.model_copy(update={"attention": recipe.attention and not recipe.portable})


def count_quantized(model: "ov.Model") -> dict[str, str]:
    """Operators with FakeQuantize on both inputs, of all: `{"MatMul": "72 of 72", "Convolution": "1 of 1"}`."""
    total: Counter[str] = Counter()
    quantized: Counter[str] = Counter()
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in {"MatMul", "Convolution"}:
            total[kind] += 1
            quantized[kind] += all(_is_quantized(node.input_value(port).get_node()) for port in (0, 1))
    return {kind: f"{quantized[kind]} of {count}" for kind, count in sorted(total.items())}


def integer_weights(model: "ov.Model") -> Iterator[NDArray[np.integer]]:
    """The weights that a model stores in bytes, less their zero points."""
    for node in model.get_ops():
        source = node.input_value(0).get_node() if node.get_type_name() == "Convert" else None
        if source is None or source.get_type_name() != "Constant" or source.get_element_type().size != 1:
            continue
        values = source.get_data().astype(np.int32)
        for reader in (target.get_node() for target in node.output(0).get_target_inputs()):
            zero = reader.input_value(1).get_node() if reader.get_type_name() == "Subtract" else None
            while zero is not None and zero.get_type_name() == "Convert":
                zero = zero.input_value(0).get_node()
            yield values if zero is None else values - zero.get_data().astype(np.int32)


def _choose_alpha(
    model: "ov.Model", held_out: Sequence[Tiles], statistics_tiles: Sequence[Tiles], recipe: Recipe
) -> tuple[float, dict[str, float]]:
    if len(recipe.smooth_alphas) == 1:
        return recipe.smooth_alphas[0], {}
    few = _first(statistics_tiles, recipe.choice_tiles)
    reference = _embed(model, held_out)
    errors = {
        alpha: cosine_error(reference, _embed(_quantize(model, few, recipe, alpha), held_out))
        for alpha in recipe.smooth_alphas
    }
    return min(errors, key=lambda alpha: errors[alpha]), {str(alpha): error for alpha, error in errors.items()}


def _quantize(model: "ov.Model", tiles: Sequence[Tiles], recipe: Recipe, alpha: float) -> "ov.Model":
    with foreign_errors("NNCF cannot quantize the network"), _quiet_nncf():
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )

        batches = _whole_batches(model, tiles)
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if _has_attention(model) else None,
            ignored_scope=_ignored(model, recipe),
            advanced_parameters=AdvancedQuantizationParameters(
                disable_bias_correction=not recipe.bias_correction,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=alpha),
                activations_range_estimator_params=_range_estimator(recipe.calibrator),
                overflow_fix=OverflowFix.ENABLE if recipe.portable else None,
            ),
        )


def _whole_batches(model: "ov.Model", tiles: Sequence[Tiles]) -> list[Tiles]:
    """The tiles in batches that the graph takes; with a fixed batch the last ones are used again to fill it up."""
    size = model.input(0).get_partial_shape()[0]
    if size.is_dynamic:
        return list(tiles)
    stack = np.concatenate(list(tiles))
    wanted = -(-len(stack) // size.get_length()) * size.get_length()
    filled = stack[np.arange(wanted) % len(stack)]
    return list(filled.reshape(-1, size.get_length(), *stack.shape[1:]))


def _embed(model: "ov.Model", tiles: Sequence[Tiles]) -> NDArray[np.float32]:
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    count = sum(len(batch) for batch in tiles)
    return np.concatenate([compiled(batch)[0] for batch in _whole_batches(model, tiles)])[:count]


def _range_estimator(calibrator: Calibrator) -> Any:
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    if calibrator == "max":
        return RangeEstimatorParameters()
    if calibrator in ("mse", "entropy"):
        raise UsageError(f"NNCF has no {calibrator} calibrator", hint="choose max or percentile in the recipe")
    ends = {
        end: StatisticsCollectorParameters(
            statistics_type=StatisticsType.QUANTILE, aggregator_type=AggregatorType.MEAN, quantile_outlier_prob=1e-4
        )
        for end in ("min", "max")
    }
    return RangeEstimatorParameters(**ends)


def _ignored(model: "ov.Model", recipe: Recipe) -> "nncf.IgnoredScope":
    """What NNCF leaves alone: excluded layers, and the attention products or patch embedding where not wanted."""
    import nncf

    products = [node for node in model.get_ops() if node.get_type_name() in {"MatMul", "Convolution"}]
    layers = [node for node in products if _has_constant_weight(node)]
    ignored: list[ov.Node] = []
    for pattern in recipe.exclude:
        matched = [node for node in layers if fnmatch.fnmatch(_layer_name(node), pattern)]
        if not matched:
            known = next((name for name in map(_layer_name, layers) if name), "none has a name")
            raise UsageError(f"recipe excludes {pattern!r}, which no layer matches", hint=f"layers: {known} …")
        ignored += matched
    if not recipe.attention:
        ignored += [node for node in products if not _has_constant_weight(node)]
    if not recipe.patch_embed:
        ignored += [node for node in layers if node.get_type_name() == "Convolution"]
    return nncf.IgnoredScope(names=sorted({node.get_friendly_name() for node in ignored}))


def _has_attention(model: "ov.Model") -> bool:
    """Whether two computed tensors are multiplied, as queries and keys are."""
    return any(node.get_type_name() == "MatMul" and not _has_constant_weight(node) for node in model.get_ops())


def _layer_name(node: "ov.Node") -> str:
    """The module's name, such as `blocks.3.mlp.fc2`, which `export_onnx` puts before the node's own.

    In graphs from elsewhere, that of its weight or (where that was transposed) its bias.
    """
    module, slash, _ = str(node.get_friendly_name()).partition("/")
    if slash and "." in module:
        return module.removeprefix("backbone.")
    readers = [target.get_node() for target in node.output(0).get_target_inputs()]
    sources = [node.input_value(1).get_node()]
    sources += [value.get_node() for reader in readers for value in reader.input_values()]
    for name in (source.get_friendly_name() for source in sources):
        if name.endswith((".weight", ".bias")):
            return str(name.rpartition(".")[0]).removeprefix("backbone.")
    return ""


def _has_constant_weight(node: "ov.Node") -> bool:
    source = node.input_value(1).get_node()
    while source.get_type_name() in {"Convert", "FakeQuantize", "Multiply", "Reshape", "Transpose"}:
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "Constant")


def _is_quantized(node: "ov.Node") -> bool:
    # An INT8 weight is stored as Constant -> Convert -> (Subtract) -> Multiply.
    while node.get_type_name() in {"Convert", "Multiply", "Subtract", "Reshape", "Transpose"}:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Constant":
        return str(node.get_element_type().get_type_name()) in {"i8", "u8"}
    return bool(node.get_type_name() == "FakeQuantize")


def _first(tiles: Sequence[Tiles], count: int) -> list[Tiles]:
    """About `count` tiles, spread over all batches."""
    stack = np.concatenate(list(tiles))
    few = stack[np.linspace(0, len(stack) - 1, min(count, len(stack))).astype(int)]
    size = max(len(batch) for batch in tiles)
    return [few[start : start + size] for start in range(0, len(few), size)]


@contextmanager
def _quiet_nncf() -> Iterator[None]:
    import logging

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
