"""Ranges and smoothing scales of a layer's input, chosen by the error of its output or of the input itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_edge.quantize.recipe import Calibrator

if TYPE_CHECKING:
    from torch import Tensor

ALPHAS = (0.5, 0.65, 0.8)
RATIOS = (1.0, 0.85, 0.7)
_INT8_MAX = 127.0
_PERCENTILE = 0.9999
_FINE_RATIOS = tuple(1 - 0.05 * step for step in range(15))


@dataclass(frozen=True, slots=True)
class InputRange:
    """How a Linear's input is quantized.

    Attributes:
        scale: `(C,)` that the input is divided by and the weight multiplied with; ones where nothing is moved.
        amax: Largest absolute value of the divided input that INT8 holds.
        alpha: SmoothQuant strength of `scale`; -1 without.
        error: Squared error of the output, relative to the output's own squares.
    """

    scale: "Tensor"
    amax: float
    alpha: float
    error: float


def fake_int8(values: "Tensor", amax: float) -> "Tensor":
    """Round to the 255 levels of symmetric INT8 and clip at `amax`."""
    step = amax / _INT8_MAX
    return (values / step).round_().clamp_(-128, 127).mul_(step)


def fake_weight(weight: "Tensor", levels: int = 127) -> "Tensor":
    """Round `(O, C)` weights to a symmetric grid per output channel."""
    step = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / levels
    return (weight / step).round_().clamp_(-levels, levels).mul_(step)


def smooth_scale(peak: "Tensor", weight: "Tensor", alpha: float) -> "Tensor":
    """SmoothQuant's scale `max|x_j|^alpha / max|w_j|^(1 - alpha)` (arXiv:2211.10438, equation 4), `(C,)`."""
    import torch

    if alpha < 0:
        return torch.ones_like(peak)
    largest = weight.abs().amax(0).clamp(min=1e-5)
    return (peak.clamp(min=1e-5) ** alpha / largest ** (1 - alpha)).clamp(1e-4, 1e4)


def choose_range(
    inputs: "Tensor",
    peak: "Tensor",
    weight: "Tensor",
    *,
    alphas: Sequence[float] = ALPHAS,
    ratios: Sequence[float] = RATIOS,
    levels: int = 127,
) -> InputRange:
    """Choose the smoothing strength and how much of the range to clip, by the error of the layer's output.

    Args:
        inputs: `(n, C)` sampled tokens; a thousand are enough.
        peak: `(C,)` largest absolute values over all tokens.
        weight: `(O, C)`.
        alphas: Strengths to try; -1 moves nothing.
        ratios: Shares of the full range to try.
        levels: Largest integer of the weights' grid.
    """
    wanted = inputs @ weight.T
    power = float(wanted.square().mean().clamp(min=1e-12))
    best: InputRange | None = None
    for alpha in alphas:
        scale = smooth_scale(peak, weight, alpha)
        smoothed, rounded = inputs / scale, fake_weight(weight * scale, levels)
        largest = float((peak / scale).amax())
        for ratio in ratios:
            error = float((fake_int8(smoothed, ratio * largest) @ rounded.T - wanted).square().mean()) / power
            if best is None or error < best.error:
                best = InputRange(scale=scale, amax=ratio * largest, alpha=alpha, error=error)
    assert best is not None
    return best


def clipped_amax(values: "Tensor", largest: float, calibrator: Calibrator) -> float:
    """Where to clip a tensor by itself, whatever reads it.

    Args:
        values: Sampled values, any shape.
        largest: Largest absolute value of the whole tensor.
        calibrator: `max`, `percentile` (99.99 % of the sample) or `mse` (least squared error of the sample).
    """
    if calibrator == "max":
        return largest
    if calibrator == "percentile":
        ordered = values.abs().flatten().sort().values
        return float(ordered[int(_PERCENTILE * (len(ordered) - 1))].clamp(min=1e-5))
    errors = {ratio: float((fake_int8(values, ratio * largest) - values).square().mean()) for ratio in _FINE_RATIOS}
    return min(errors, key=lambda ratio: errors[ratio]) * largest
