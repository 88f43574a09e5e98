"""Fake quantization of a torch encoder through ModelOpt: insert quantizers, set their ranges, smooth outliers."""

import copy
import fnmatch
import io
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.quantize.numerics.blocks import FitOptions, fit_blocks
from atlas_edge.quantize.numerics.ranges import clipped_amax
from atlas_edge.quantize.numerics.rounding import largest_integer, smooth_scale
from atlas_edge.quantize.numerics.stages import unfittable_part
from atlas_edge.quantize.onnx.qkv_bias import join_biases, separate_biases
from atlas_edge.quantize.recipe import Recipe, check_merges_nothing
from atlas_edge.quantize.tiles.augmentation import with_augmented

if TYPE_CHECKING:
    import torch

Tiles = NDArray[np.uint8]

INT8_BITS, INT8_MAX = 8, 127.0
# Tokens that blocks are fitted on: 256 tiles of 16 x 16 patches.
_FIT_TOKENS, _FEWEST_FIT_TILES = 65_792, 16
_PIECE, _SAMPLED_ROWS = 8, 32
NO_TILES = "no calibration tiles, expected at least one"


def fake_quantize(
    module: "torch.nn.Module",
    calibration: Sequence[Tiles],
    recipe: Recipe,
    *,
    multiply: bool = True,
    trainable: bool = False,
) -> "torch.nn.Module":
    """A copy of an encoder whose Linears and convolutions round weights (per channel) and inputs (per tensor) to INT8.

    Weights are fitted block by block where the recipe says so and `fit_blocks` knows the encoder. Otherwise the
    SmoothQuant strength is chosen among `recipe.smooth_alphas` by embedding error on tiles held out of the statistics;
    these are collected once and shared by all candidates.

    Args:
        module: Full-precision encoder, `(B, H, W, 3)` uint8 -> `(B, D)` float32. Unchanged.
        calibration: Batches of tiles; augmented copies are put among them as the recipe says.
        recipe: What to quantize and how.
        multiply: See `FitOptions`.
        trainable: Keep fitted weights as they were before rounding, which then rounds them to the fitted ones: training
            moves those near a step's edge first, instead of all of them at once.

    Returns:
        The fake-quantized copy; its attribute `smooth_alpha` holds the strength that was chosen, or those of the layers
        where weights are fitted.

    Raises:
        InputError: No calibration tiles, or a layer that the network does not call.
        UsageError: `recipe.exclude` names a layer that the encoder does not have, no layer is left, or the recipe
            merges tokens.
    """
    import torch

    check_merges_nothing(recipe, "a graph with Q/DQ")
    if separate_biases(module):
        module = join_biases(copy.deepcopy(module))
    calibration = with_augmented(calibration, recipe.augmented_share)
    if recipe.weights == "fitted" and unfittable_part(module) is None:
        return _fitted(module, calibration, recipe, multiply=multiply, trainable=trainable)
    held_out, statistics_tiles = split_choice(calibration, recipe)
    statistics = input_statistics(module, statistics_tiles, quantized_layers(module, recipe))
    reference = embed(module, held_out) if len(recipe.smooth_alphas) > 1 else None
    best: tuple[float, float, torch.nn.Module] | None = None
    for alpha in recipe.smooth_alphas:
        candidate = insert_quantizers(module, recipe)
        set_ranges(candidate, statistics, alpha, recipe)
        error = 0.0 if reference is None else cosine_error(reference, embed(candidate, held_out))
        if best is None or error < best[0]:
            best = (error, alpha, candidate)
    assert best is not None
    best[2].smooth_alpha = best[1]
    return best[2]


def _fitted(
    module: "torch.nn.Module", calibration: Sequence[Tiles], recipe: Recipe, *, multiply: bool, trainable: bool
) -> "torch.nn.Module":
    """Fit the blocks; other layers are rounded to the nearest with the range of what the calibration tiles show."""
    if not any(map(len, calibration)):
        raise InputError(NO_TILES, hint="give --calib TILES")
    tiles = np.concatenate(list(calibration))[: recipe.calibration_tiles]
    count = min(max(_FIT_TOKENS // _tokens_of_a_tile(module), _FEWEST_FIT_TILES), len(tiles))
    chosen = tiles[np.linspace(0, len(tiles) - 1, count).astype(int)]
    options = FitOptions(
        alphas=recipe.smooth_alphas,
        calibrator=recipe.calibrator,
        levels=largest_integer(recipe.weight_bits),
        float_layers=excluded_layers(module, recipe),
        multiply=multiply,
        bias_correction=recipe.bias_correction,
    )
    fitted, ranges = fit_blocks(module, chosen, options)
    quantized = insert_quantizers(fitted, recipe)
    others = [name for name in quantized_layers(module, recipe) if name not in ranges]
    if others:
        set_ranges(quantized, input_statistics(fitted, list(_batched(chosen, _PIECE)), others), -1.0, recipe)
    for name, found in ranges.items():
        layer = quantized.get_submodule(name)
        layer.input_quantizer.amax = found.input_amax
        if found.input_scale is not None:
            layer.input_quantizer.pre_quant_scale = found.input_scale
        layer.weight_quantizer.amax = found.weight_amax[:, None]
        if trainable:
            layer.weight.data = found.sought
    quantized.smooth_alpha = {name.removeprefix("backbone."): found.alpha for name, found in ranges.items()}
    return quantized


def _tokens_of_a_tile(module: "torch.nn.Module") -> int:
    backbone: Any = module.get_submodule("backbone")
    positions = getattr(backbone, "pos_embed", None)
    return int(backbone.patch_embed.num_patches) if positions is None else int(positions.shape[1])


def split_choice(calibration: Sequence[Tiles], recipe: Recipe) -> tuple[list[Tiles], list[Tiles]]:
    """Hold `recipe.choice_tiles` tiles out of the calibration tiles (at most a quarter of them).

    Returns:
        Batches to choose on, and batches for the statistics. The two are the same where there is one tile only or
        nothing to choose.

    Raises:
        InputError: No calibration tiles.
    """
    if not any(len(batch) for batch in calibration):
        raise InputError(NO_TILES, hint="give --calib TILES")
    tiles = np.concatenate(list(calibration))[: recipe.calibration_tiles]
    size = max(len(batch) for batch in calibration)
    held = 0 if len(recipe.smooth_alphas) == 1 else min(recipe.choice_tiles, len(tiles) // 4)
    if held == 0:
        return list(_batched(tiles, size)), list(_batched(tiles, size))
    # Every k-th tile: a calibration set that is sorted by class or slide stays balanced on both sides.
    chosen = np.zeros(len(tiles), dtype=bool)
    chosen[np.linspace(0, len(tiles) - 1, held).astype(int)] = True
    return list(_batched(tiles[chosen], size)), list(_batched(tiles[~chosen], size))


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """What a layer reads: `peak` is `(C,)` for a Linear and a scalar for a convolution, `sample` holds a few values."""

    peak: "torch.Tensor"
    sample: "torch.Tensor"


def input_statistics(
    module: "torch.nn.Module", calibration: Sequence[Tiles], names: Collection[str]
) -> dict[str, InputStatistics]:
    """Largest absolute input of every Linear, per channel, and of every convolution, with samples of the inputs.

    A sample is `(n, C)` for a Linear: a few tokens of every batch.

    Args:
        module: The encoder.
        calibration: Batches of tiles.
        names: Of the layers.

    Raises:
        InputError: The network computes with a layer's weight without calling the layer.
    """
    import torch

    peaks: dict[str, torch.Tensor] = {}
    samples: dict[str, list[torch.Tensor]] = {}

    def hook(name: str, linear: bool) -> Any:
        def record(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].detach()
            rows = values.flatten(0, -2) if linear else values.flatten()[:, None]
            peak = rows.abs().amax(0) if linear else rows.abs().amax()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak
            few = _SAMPLED_ROWS if linear else _SAMPLED_ROWS * 64
            samples.setdefault(name, []).append(rows[torch.linspace(0, len(rows) - 1, few).long()])

        return record

    handles = []
    for name in names:
        layer = module.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(hook(name, isinstance(layer, torch.nn.Linear))))
    try:
        embed(module, calibration)
    finally:
        for handle in handles:
            handle.remove()
    unseen = [name.removeprefix("backbone.") for name in names if name not in peaks]
    if unseen:
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise InputError(
            f"{unseen[0]}{more} is not called when the network runs: what it reads cannot be measured",
            hint=f"leave it in floating point: atlas-quantize recipe onnx --exclude '{unseen[0]}' --out mine.json, and "
            "atlas-export --recipe mine.json",
        )
    return {name: InputStatistics(peak, torch.cat(samples[name])) for name, peak in peaks.items()}


def insert_quantizers(module: "torch.nn.Module", recipe: Recipe) -> "torch.nn.Module":
    """A copy with ModelOpt quantizers on the layers that a recipe quantizes, ranges not set yet.

    Raises:
        UsageError: A pattern of `recipe.exclude` matches no layer, or no layer is left.
        InputError: ModelOpt cannot do it.
    """
    weights = {"cfg": {"num_bits": recipe.weight_bits, "axis": 0}, "enable": True}
    inputs = {"cfg": {"num_bits": INT8_BITS, "axis": None}, "enable": True}
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in quantized_layers(module, recipe):
        config.append({"quantizer_name": f"{name}.weight_quantizer", **weights})
        config.append({"quantizer_name": f"{name}.input_quantizer", **inputs})
    with foreign_errors(f"ModelOpt cannot quantize {kind_of(module)}"), quiet_modelopt():
        import modelopt.torch.quantization as mtq

        return mtq.quantize(copy.deepcopy(module).eval(), {"quant_cfg": config, "algorithm": None}, None)


def quantized_layers(module: "torch.nn.Module", recipe: Recipe) -> list[str]:
    """Names of the Linears and convolutions that a recipe quantizes.

    Raises:
        UsageError: A pattern of `recipe.exclude` matches no layer, or no layer is left.
    """
    off = set(excluded_layers(module, recipe))
    left = [name for name in _layers(module) if name not in off]
    if not left:
        raise UsageError(
            f"the recipe leaves no layer of {kind_of(module)} to quantize",
            hint="exclude less, or choose --precision fp16",
        )
    return left


def excluded_layers(module: "torch.nn.Module", recipe: Recipe) -> list[str]:
    """Names of the layers that a recipe leaves in floating point; the first convolution reads pixels.

    Raises:
        UsageError: A pattern of `recipe.exclude` matches no layer.
    """
    import torch

    names = _layers(module)
    short = {name: name.removeprefix("backbone.") for name in names}
    for pattern in recipe.exclude:
        if not fnmatch.filter(short.values(), pattern):
            raise UsageError(
                f"recipe excludes {pattern!r}, which no layer matches",
                hint=f"layers: {', '.join(short.values())[:80]} …",
            )
    off = [n for n in names if any(fnmatch.fnmatch(short[n], pattern) for pattern in recipe.exclude)]
    if not recipe.patch_embed:
        off += [n for n in names if isinstance(module.get_submodule(n), torch.nn.Conv2d)][:1]
    return off


def kind_of(module: "torch.nn.Module") -> str:
    """What a message calls a network: the class of its backbone."""
    return type(getattr(module, "backbone", module)).__name__


def _layers(module: "torch.nn.Module") -> list[str]:
    import torch

    return [n for n, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]


def set_ranges(module: "torch.nn.Module", statistics: dict[str, InputStatistics], alpha: float, recipe: Recipe) -> None:
    """Set the ranges of these layers, after moving outliers from inputs to weights by SmoothQuant (`smooth_scale`).

    Negative `alpha` leaves both as they are.
    """
    import torch

    for name, found in statistics.items():
        layer: Any = module.get_submodule(name)
        peak, sample, weight = found.peak.clamp(min=1e-5), found.sample, layer.weight.detach()
        if alpha >= 0 and isinstance(layer, torch.nn.Linear):
            scale = smooth_scale(peak, weight, alpha)
            layer.input_quantizer.pre_quant_scale = 1 / scale
            layer.weight.data = weight = weight * scale
            peak, sample = peak / scale, sample / scale
        layer.input_quantizer.amax = clipped_amax(sample, float(peak.amax()), recipe.calibrator)
        layer.weight_quantizer.amax = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1))


def store_in_int8(module: "torch.nn.Module") -> None:
    """Round weights of fewer bits to their grid and say the same in INT8: a step as large, and 8 bits."""
    import torch

    for layer in module.modules():
        quantizer = getattr(layer, "weight_quantizer", None)
        if quantizer is None or not quantizer.is_enabled or quantizer.num_bits == INT8_BITS:
            continue
        with torch.no_grad():
            layer.weight.data = quantizer(layer.weight).detach().clone()
        quantizer.amax = quantizer.amax * (INT8_MAX / largest_integer(quantizer.num_bits))
        quantizer.num_bits = INT8_BITS


def embed(module: "torch.nn.Module", batches: Sequence[Tiles]) -> NDArray[np.float32]:
    """Embeddings of all batches, `(N, D)`."""
    import torch

    with torch.inference_mode():
        return np.concatenate([module(torch.from_numpy(batch)).float().numpy() for batch in batches])


def cosine_error(reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> float:
    """Mean of `1 - cosine` over tiles, in double precision: in single, all below 1e-7 comes out as 0 or noise."""
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    dot = (reference * candidate).sum(1)
    cosine = dot / np.maximum(np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1), 1e-12)
    return float(np.mean(1 - cosine))


@contextmanager
def quiet_modelopt() -> Iterator[None]:
    """Import and call ModelOpt without its start-up warnings about optional parts, and with nothing on stdout."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _batched(tiles: Tiles, size: int) -> Iterator[Tiles]:
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]
