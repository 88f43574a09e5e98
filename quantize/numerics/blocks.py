"""A vision transformer quantized block by block, each layer by the error of its own output.

One walker for every target. Per block, first attention and then the MLP (`stages.Stage`), each with Linears that read a
norm and a Linear that writes to the residual stream:

1. the strength of smoothing (SmoothQuant, arXiv:2211.10438) and the range of an input are chosen by the error of what
   its products give (`ranges.choose_range`), the range symmetric or not, as the target takes it; the scale moves into
   what makes the input, exactly, where something can take it in (`stages.Read.divide`);
2. weights are rounded by GPTQ (`gptq`), by what the input is on its grid;
3. the mean error that is left goes into the bias.

All of it comes from one pass at full precision.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.quantize.numerics.gptq import RoundedWeights, nearest_weights, round_weights
from atlas_edge.quantize.numerics.moments import Channels, Inputs, moments
from atlas_edge.quantize.numerics.ranges import ActivationGrid, choose_range
from atlas_edge.quantize.numerics.stages import Read, Stage, stages
from atlas_edge.quantize.recipe import Calibrator, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atlas_edge.models.folding.merging import Stream

_PIECE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How blocks are fitted.

    Attributes:
        alphas: SmoothQuant strengths to choose from for each input; -1 moves nothing.
        calibrator: How a range is set; see `ranges.choose_range`.
        symmetric: Ranges of inputs are symmetric.
        weights: Rounded by GPTQ (`fitted`), or to the nearest.
        levels: Largest integer of the weights' grid: 127 for 8 bits, 7 for 4.
        float_layers: Names of Linears that stay in floating point.
        multiply: Smooth inputs, too, where that costs a multiplication when the network runs.
        bias_correction: Take the mean error that is left into the bias.
    """

    alphas: Sequence[float] = (0.5, 0.65, 0.8)
    calibrator: Calibrator = "mse"
    symmetric: bool = True
    weights: Weights = "fitted"
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
        sought: `(O, C)` weights before rounding (`gptq.RoundedWeights`).
        alpha: SmoothQuant strength that was chosen.
        error: See `ranges.ActivationGrid`.
    """

    input_scale: "Tensor | None"
    input_amax: float
    weight_amax: "Tensor"
    sought: "Tensor"
    alpha: float
    error: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A Linear as quantized: the grid of its input, weights for the divided input, and the bias."""

    grid: ActivationGrid
    weights: RoundedWeights
    bias: "Tensor | None"


def fit_blocks(
    module: "nn.Module",
    tiles: NDArray[np.uint8],
    options: FitOptions | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> "tuple[nn.Module, dict[str, LayerRange]]":
    """Smooth and round the Linears of a ViT's blocks.

    Args:
        module: `EncoderModule` around a timm ViT in which `stages.unfittable_part` finds nothing. Unchanged.
        tiles: `(N, H, W, 3)` uint8 calibration tiles.
        options: See `FitOptions`.
        progress: Called with the name of the last Linear of each stage.

    Returns:
        A copy with weights on the INT8 grid, LayerScale folded, and the ranges by the Linears' names: an ordinary
        network, for any target.
    """
    import torch

    from atlas_edge.models.folding.merging import Stream

    fitted = copy.deepcopy(module).eval()
    ranges: dict[str, LayerRange] = {}
    with torch.inference_mode():
        for stage, found in fit_stages(stages(fitted), Stream(_tokens(fitted, tiles)), options or FitOptions()):
            for name, layer in found.items():
                linear: Any = fitted.get_submodule(name)
                linear.weight.data = layer.weights.weight
                if layer.bias is not None:
                    linear.bias.data = layer.bias
                scale = layer.grid.scale
                ranges[name] = LayerRange(
                    input_scale=None if scale is None else 1 / torch.from_numpy(scale),
                    input_amax=layer.grid.high,
                    weight_amax=layer.weights.largest.clone(),
                    sought=layer.weights.sought.clone(),
                    alpha=layer.grid.alpha,
                    error=layer.grid.error,
                )
            if progress is not None:
                progress(stage.names[-1])
    for parameter in fitted.parameters():
        # Tensors made in inference mode cannot be trained.
        parameter.data = parameter.data.clone()
    return fitted, ranges


def fit_stages(
    stages: Iterable[Stage], stream: "Stream", options: FitOptions
) -> Iterator[tuple[Stage, dict[str, Fitted]]]:
    """Choose grids and round weights, stage by stage; the modules change by what is exact only.

    Args:
        stages: In the order of computation.
        stream: What the first reads, tokens `(N, T, D)`.
        options: See `FitOptions`.

    Yields:
        The stage, and what was found for each Linear that is quantized.
    """
    for stage in stages:
        seen = {read: Inputs() for read in (*stage.first, stage.second)}
        stream = _watched(stage, stream, seen)
        quantized = [read for read in seen if set(read.layers) - set(options.float_layers)]
        # The second first: its scale may move into the rows of a first one.
        grids = {read: _choose(read, seen[read], options) for read in reversed(quantized)}
        yield stage, {n: found for read in quantized for n, found in _fit(read, grids[read], seen[read], options)}


def _tokens(module: "nn.Module", tiles: NDArray[np.uint8]) -> "Tensor":
    """`(N, T, D)` tokens before the first block."""
    import torch

    found: list[Tensor] = []

    def stop(_: Any, inputs: "tuple[Tensor, ...]") -> None:
        found.append(inputs[0])
        raise _Reached

    with _hooked(module.get_submodule("backbone.blocks.0").register_forward_pre_hook(stop)):
        for piece in torch.from_numpy(tiles).split(_PIECE):
            try:
                module(piece)
            except _Reached:
                continue
    return torch.cat(found)


class _Reached(Exception):
    """The layer was reached."""


def _watched(stage: Stage, stream: "Stream", seen: dict[Read, Inputs]) -> "Stream":
    """The residual stream after the stage; what its Linears read is recorded, and the stage adapted."""

    def takes(inputs: Inputs) -> Any:
        return lambda _, given: inputs.add(given[0])

    def gives(channels: Channels) -> Any:
        return lambda _, __, made: channels.add(made if made.dim() == 3 else made.transpose(1, 2).flatten(2))

    makes = {} if stage.scores is None else {part: Channels() for part in stage.scores.makes}
    hooks = [read.layer.register_forward_pre_hook(takes(inputs)) for read, inputs in seen.items()]
    hooks += [part.register_forward_hook(gives(channels)) for part, channels in makes.items()]
    with _hooked(*hooks):
        after = stream.joined([stage.after(piece) for piece in stream.split(_PIECE)])
    offset = None if stage.scores is None else stage.scores.adapt(*makes.values())
    if offset is not None:
        seen[stage.second].shift(offset)
    return after


@contextmanager
def _hooked(*hooks: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _choose(read: Read, seen: Inputs, options: FitOptions) -> ActivationGrid:
    """The grid of an input; a scale that something else can take in is moved there."""
    import torch

    grid = choose_range(
        seen.choosing,
        seen.low,
        seen.high,
        torch.cat([layer.weight for name, layer in read.layers.items() if name not in options.float_layers]),
        alphas=options.alphas if read.divide is not None or options.multiply else (-1.0,),
        calibrator=options.calibrator,
        levels=options.levels,
        symmetric=options.symmetric,
    )
    if grid.scale is None or read.divide is None:
        return grid
    scale = torch.from_numpy(grid.scale)
    read.smooth(scale)
    seen.divide(scale)
    return replace(grid, scale=None)


def _fit(read: Read, grid: ActivationGrid, seen: Inputs, options: FitOptions) -> Iterator[tuple[str, Fitted]]:
    """The Linears that read one input, rounded together: they share its moments."""
    import torch

    layers = {name: layer for name, layer in read.layers.items() if name not in options.float_layers}
    exact = torch.cat([layer.weight for layer in layers.values()])
    rows = seen.rows
    mean, gram = moments(grid.rounded(rows))
    if options.weights == "fitted":
        found = round_weights(grid.weighted(exact), gram, levels=options.levels)
    else:
        found = nearest_weights(grid.weighted(exact), levels=options.levels)
    missed = exact @ rows.mean(0) - found.weight @ mean
    sizes = [len(layer.weight) for layer in layers.values()]
    parts = zip(*(values.split(sizes) for values in (found.weight, found.sought, found.largest, missed)), strict=True)
    for (name, layer), (weight, sought, largest, off) in zip(layers.items(), parts, strict=True):
        bias = layer.bias if layer.bias is None or not options.bias_correction else layer.bias + off
        yield name, Fitted(grid, RoundedWeights(weight, sought, largest), bias)
