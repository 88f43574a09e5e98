"""A vision transformer quantized block by block: each layer is fitted to what the quantized ones before it hand on.

Per block, first attention and then the MLP (`stages.Stage`), each a LayerNorm, Linears that read it, and a Linear that
writes to the residual stream:

1. smoothing moves outliers from inputs to weights, exactly: into the LayerNorm, into the value rows of `qkv` or of a
   gated MLP or into the norm inside it, and before a plain MLP's `fc2` into one multiplication (SmoothQuant,
   arXiv:2211.10438);
2. strength and range are chosen by the error of each Linear's output (`clip.choose_range`);
3. weights are fitted to the inputs as quantized, then rounded by GPTQ (`gptq`); what quantization has already done to
   the residual stream is part of the target, so that errors are taken back rather than piled up;
4. the mean error left goes into the bias.

The transformed network is an ordinary one, for any target: its weights lie on the INT8 grid and the returned ranges
say how its inputs are to be quantized.
"""

import contextlib
import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.quantize.numerics.gptq import fit_weights, round_weights
from atlas_edge.quantize.numerics.moments import Moments
from atlas_edge.quantize.numerics.ranges import InputRange, choose_range
from atlas_edge.quantize.numerics.rounding import fake_int8
from atlas_edge.quantize.numerics.stages import Stage, stages
from atlas_edge.quantize.recipe import Calibrator

if TYPE_CHECKING:
    from torch import Tensor, nn

_PIECE = 8
# CLS tokens and tokens of all kinds on which ranges are chosen: one to three, whatever the number of tiles.
_SAMPLED_CLS, _SAMPLED = 256, 768


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How blocks are fitted.

    Attributes:
        alphas: SmoothQuant strengths to choose from for each Linear; -1 moves nothing.
        calibrator: How a range is set; see `clip.choose_range`.
        ridge: How strongly weights are held to what they were, relative to the mean variance of an input.
        cls_weight: Weight of a CLS token relative to a patch token: the embedding is read from it.
        levels: Largest integer of the weights' grid: 127 for 8 bits, 7 for 4.
        float_layers: Names of Linears that stay in floating point.
        multiply: Smooth the input of `fc2`, too, which costs a multiplication when the network runs.
        bias_correction: Take the mean error that is left into the bias.
    """

    alphas: Sequence[float] = (0.5, 0.65, 0.8)
    calibrator: Calibrator = "mse"
    ridge: float = 0.01
    cls_weight: float = 16.0
    levels: int = 127
    float_layers: Collection[str] = ()
    multiply: bool = True
    bias_correction: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRange:
    """How one Linear of the fitted network is quantized.

    Attributes:
        input_scale: `(C,)` that its input is multiplied by first; None where that is folded or not done.
        input_amax: Largest absolute input that INT8 holds.
        weight_amax: `(O,)` largest absolute weight of each output channel's grid.
        sought: `(O, C)` weights before rounding (`gptq.RoundedWeights`); None where they were not rounded.
        alpha: SmoothQuant strength that was chosen.
        error: Squared error of its output from rounding input and weight to the nearest, relative to the output's
            squares, before weights are fitted.
    """

    input_scale: "Tensor | None"
    input_amax: float
    weight_amax: "Tensor"
    sought: "Tensor | None"
    alpha: float
    error: float


def fit_blocks(
    module: "nn.Module",
    tiles: NDArray[np.uint8],
    options: FitOptions | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> "tuple[nn.Module, dict[str, LayerRange]]":
    """Smooth, fit and round every Linear of a ViT's blocks.

    Args:
        module: `EncoderModule` around a timm ViT in which `stages.unfittable_part` finds nothing. Unchanged.
        tiles: `(N, H, W, 3)` uint8 calibration tiles. The widest layer has 4 D inputs: N times the tokens of a tile
            should be several times that.
        options: See `FitOptions`.
        progress: Called with the name of each Linear.

    Returns:
        A copy with weights on the INT8 grid, LayerScale folded, and the ranges by the Linears' names.
    """
    import torch

    options = options or FitOptions()
    fitted = copy.deepcopy(module).eval()
    ranges: dict[str, LayerRange] = {}
    with torch.inference_mode():
        exact = _tokens(fitted, tiles)
        rounded = exact.clone()
        for stage in stages(fitted):
            exact, rounded = _fit_stage(stage, exact, rounded, options, ranges)
            if progress is not None:
                progress(stage.names[-1])
    for parameter in fitted.parameters():
        # Tensors made in inference mode cannot be trained.
        parameter.data = parameter.data.clone()
    return fitted, ranges


def _tokens(module: "nn.Module", tiles: NDArray[np.uint8]) -> "Tensor":
    """`(N, T, D)` tokens before the first block."""
    import torch

    pieces = (torch.from_numpy(tiles[start : start + _PIECE]) for start in range(0, len(tiles), _PIECE))
    return _stopped(module.get_submodule("backbone.blocks.0"), module, pieces)


def _stopped(layer: "nn.Module", function: "Callable[[Tensor], object]", pieces: "Iterable[Tensor]") -> "Tensor":
    """What a layer reads while a function of the pieces is computed, which goes no further."""
    import torch

    seen: list[Tensor] = []

    def stop(_: Any, inputs: "tuple[Tensor, ...]") -> None:
        seen.append(inputs[0])
        raise _Reached

    handle = layer.register_forward_pre_hook(stop)
    try:
        for piece in pieces:
            with contextlib.suppress(_Reached):
                function(piece)
    finally:
        handle.remove()
    return torch.cat(seen)


class _Reached(Exception):
    """The layer was reached."""


def _fit_stage(
    stage: Stage, exact: "Tensor", rounded: "Tensor", options: FitOptions, ranges: dict[str, LayerRange]
) -> "tuple[Tensor, Tensor]":
    """Fit all its Linears; returns the residual streams after the stage, exact and as quantized."""
    normed = _in_pieces(stage.norm, exact)
    written, inner = _run_body(stage, normed)
    if stage.gamma is not None:
        written *= stage.gamma
    _fold_layer_scale(stage)
    first = _choose(normed, _joined(stage.first), options)
    folded = stage.values is not None or stage.inner_norm is not None
    second = _choose(
        inner, stage.second.weight, options if folded or options.multiply else replace(options, alphas=(-1.0,))
    )
    multiplier = _smooth(stage, first, second)
    *first_names, second_name = stage.names
    amax = None if set(first_names) <= set(options.float_layers) else first.amax

    # Outputs of the first Linears are as wide as the MLP: what is wanted of them follows from their inputs.
    seen = _in_pieces(stage.norm, rounded)
    for is_float in {name in options.float_layers for name in first_names}:
        moments = Moments(_rounded(seen, None if is_float else amax), options.cls_weight)
        mean, cross = moments.against(normed)
        for layer, name in zip(stage.first, first_names, strict=True):
            if (name in options.float_layers) is is_float:
                wanted = (layer.weight / first.scale).T
                weights = _fit_layer(layer, moments, (mean @ wanted, cross @ wanted), options, is_float=is_float)
                ranges[name] = _range(first, None, weights)
        del moments
    del normed

    target = inner @ (stage.second.weight / second.scale).T
    target += exact
    target -= rounded
    del inner
    seen = _inner(stage, seen, amax)
    if multiplier is not None:
        seen *= multiplier
    is_float = second_name in options.float_layers
    seen = _rounded(seen, None if is_float else second.amax)
    moments = Moments(seen, options.cls_weight)
    weights = _fit_layer(stage.second, moments, moments.against(target), options, is_float=is_float)
    ranges[second_name] = _range(second, multiplier, weights)
    return exact + written, rounded + _in_pieces(stage.second, seen)


def _range(chosen: InputRange, multiplier: "Tensor | None", weights: "tuple[Tensor, Tensor | None]") -> LayerRange:
    peaks, sought = weights
    return LayerRange(
        input_scale=None if multiplier is None else multiplier.clone(),
        input_amax=chosen.amax,
        weight_amax=peaks.clone(),
        sought=None if sought is None else sought.clone(),
        alpha=chosen.alpha,
        error=chosen.error,
    )


def _run_body(stage: Stage, normed: "Tensor") -> "tuple[Tensor, Tensor]":
    """What attention or MLP computes, and what its second Linear reads."""
    import torch

    seen: list[Tensor] = []
    handle = stage.second.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        out = _in_pieces(stage.body, normed)
    finally:
        handle.remove()
    return out, torch.cat(seen)


def _inner(stage: Stage, normed: "Tensor", amax: float | None) -> "Tensor":
    """What the second Linear reads where the input of the first is rounded with `amax`."""
    return _stopped(stage.second, stage.body, _rounded(normed, amax).split(_PIECE))


def _joined(layers: "Sequence[nn.Linear]") -> "Tensor":
    import torch

    return torch.cat([layer.weight for layer in layers])


def _choose(inputs: "Tensor", weight: "Tensor", options: FitOptions) -> InputRange:
    import torch

    flat = inputs.reshape(-1, inputs.shape[-1])
    # Tiles are taken again where there are fewer.
    first, rows = (
        torch.linspace(0, count - 1, sampled).long()
        for count, sampled in ((len(inputs), _SAMPLED_CLS), (len(flat), _SAMPLED))
    )
    return choose_range(
        torch.cat([inputs[first, 0], flat[rows]]),
        flat.abs().amax(0),
        weight,
        alphas=options.alphas,
        calibrator=options.calibrator,
        levels=options.levels,
    )


def _fold_layer_scale(stage: Stage) -> None:
    import torch

    if stage.gamma is None:
        return
    gamma = stage.gamma.data
    stage.second.weight.data = stage.second.weight * gamma[:, None]
    if stage.second.bias is not None:
        stage.second.bias.data = stage.second.bias * gamma
    # Ones rather than nothing: modules keep their names and kinds.
    stage.gamma.data = torch.ones_like(gamma)


def _smooth(stage: Stage, first: InputRange, second: InputRange) -> "Tensor | None":
    """Move the scales into what computes the inputs; returns what the second input must be multiplied by."""
    _divide_norm(stage.norm, first.scale)
    for layer in stage.first:
        layer.weight.data = layer.weight * first.scale
    stage.second.weight.data = stage.second.weight * second.scale
    if stage.inner_norm is not None:
        _divide_norm(stage.inner_norm, second.scale)
        return None
    if stage.values is None:
        return None if second.alpha < 0 else 1 / second.scale
    layer, rows = stage.values
    weight = layer.weight.clone()
    weight[rows] /= second.scale[:, None]
    layer.weight.data = weight
    if layer.bias is not None:
        bias = layer.bias.clone()
        bias[rows] /= second.scale
        layer.bias.data = bias
    return None


def _divide_norm(norm: Any, scale: "Tensor") -> None:
    norm.weight.data = norm.weight / scale
    if norm.bias is not None:
        norm.bias.data = norm.bias / scale


def _fit_layer(
    layer: "nn.Linear",
    moments: Moments,
    wanted: "tuple[Tensor, Tensor]",
    options: FitOptions,
    *,
    is_float: bool,
) -> "tuple[Tensor, Tensor | None]":
    """Set weight and bias; returns the largest weights of the channels, and the weights before rounding.

    `wanted` is what `moments.against` gives for the outputs without bias.
    """
    target_mean, cross = wanted
    fitted = fit_weights(moments.gram, cross, layer.weight, ridge=options.ridge)
    peaks, sought = fitted.abs().amax(1), None
    if not is_float:
        found = round_weights(fitted, moments.gram, levels=options.levels)
        fitted, peaks, sought = found.weight, found.largest, found.sought
    layer.weight.data = fitted
    if layer.bias is not None and options.bias_correction:
        layer.bias.data = layer.bias + target_mean - fitted @ moments.mean
    return peaks, sought


def _rounded(values: "Tensor", amax: float | None) -> "Tensor":
    return values if amax is None else fake_int8(values, amax)


def _in_pieces(function: Any, values: "Tensor") -> "Tensor":
    import torch

    return torch.cat([function(values[at : at + _PIECE]) for at in range(0, len(values), _PIECE)])
