"""Ranges and smoothing scales of a layer's input, chosen by the error of its output or of the input itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.quantize.numerics.rounding import (
    fake_round,
    fake_weight,
    grid_ends,
    smooth_scale,
    symmetric_ends,
)
from atlas_edge.quantize.recipe import Calibrator

if TYPE_CHECKING:
    from torch import Tensor

_RATIOS = (1.0, 0.85, 0.7)
_PERCENTILE = 0.9999
_HISTOGRAM_BINS, _HISTOGRAM_STRIDE = 2048, 16
_FINE_RATIOS = tuple(1 - 0.05 * step for step in range(15))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationGrid:
    """256 evenly spaced values, zero among them.

    Attributes:
        low: Smallest value.
        high: Largest value.
        limit: Values beyond it, on either side, are cut off before they are rounded; None where the ends do that.
        scale: `(C,)` that the input is divided by, and the weight multiplied with, before; None without SmoothQuant.
        alpha: SmoothQuant strength of `scale`, or of the scale that went into what makes the input.
        clip: Share of the range that calibration tiles fill.
        error: Squared error of the product's output with input and weight rounded to the nearest, its mean left out,
            relative to the output's variance.
    """

    low: float
    high: float
    limit: float | None = None
    scale: NDArray[np.float32] | None = None
    alpha: float = -1.0
    clip: float = 1.0
    error: float = 0.0

    def rounded(self, values: "Tensor") -> "Tensor":
        """`(..., C)` divided by the scale, and rounded to the grid."""
        import torch

        divided = values if self.scale is None else values / torch.from_numpy(self.scale)
        return fake_round(divided, self.low, self.high)

    def weighted(self, weight: "Tensor") -> "Tensor":
        """`(O, C)` weights that multiply the divided input."""
        import torch

        return weight if self.scale is None else weight * torch.from_numpy(self.scale)


def choose_range(
    inputs: "Tensor",
    low: "Tensor",
    high: "Tensor",
    weight: "Tensor",
    *,
    alphas: Sequence[float],
    calibrator: Calibrator,
    levels: int = 127,
    symmetric: bool = True,
) -> ActivationGrid:
    """Choose the smoothing strength, and with `mse` how much of the range to clip, by the error of the layer's output.

    The mean error does not count: it goes into the bias.

    Args:
        inputs: `(n, C)` sampled tokens; a thousand are enough.
        low: `(C,)` smallest values over all tokens.
        high: `(C,)` largest values.
        weight: `(O, C)`.
        alphas: Strengths to try; -1 moves nothing.
        calibrator: `mse` tries several shares of the full range; the others clip as `clipped_amax` says.
        levels: Largest integer of the weights' grid.
        symmetric: Zero is the integer zero; otherwise the ends follow those of the values.
    """
    import torch

    wanted = inputs @ weight.T
    variance = wanted.var(0).mean().clamp(min=1e-12)
    best: ActivationGrid | None = None
    for alpha in alphas:
        scale = smooth_scale(torch.maximum(high, -low), weight, alpha)
        smoothed, rounded = inputs / scale, fake_weight(weight * scale, levels)
        ends = float((low / scale).min()), float((high / scale).max())
        largest = max(-ends[0], ends[1], 1e-8)
        for clip in _RATIOS if calibrator == "mse" else [clipped_amax(smoothed, largest, calibrator) / largest]:
            grid = symmetric_ends(clip * largest) if symmetric else grid_ends(clip * ends[0], clip * ends[1])
            wrong = fake_round(smoothed, *grid) @ rounded.T - wanted
            error = float(wrong.var(0, correction=0).mean() / variance)
            if best is None or error < best.error:
                kept = None if alpha < 0 else scale.numpy()
                best = ActivationGrid(low=grid[0], high=grid[1], scale=kept, alpha=alpha, clip=clip, error=error)
    assert best is not None
    return best


def clipped_amax(values: "Tensor", largest: float, calibrator: Calibrator) -> float:
    """Where to clip a tensor by itself, whatever reads it.

    Args:
        values: Sampled values, any shape.
        largest: Largest absolute value of the whole tensor.
        calibrator: `max`, `percentile` (99.99 % of the sample), `mse` (least squared error of the sample) or `entropy`
            (least Kullback-Leibler divergence of its histogram; Migacz 2017, "8-bit inference with TensorRT").
    """
    if calibrator == "max":
        return largest
    if calibrator == "percentile":
        ordered = values.abs().flatten().sort().values
        return float(ordered[int(_PERCENTILE * (len(ordered) - 1))].clamp(min=1e-5))
    if calibrator == "entropy":
        return min(_entropy_amax(values), largest)
    errors = {
        ratio: float((fake_round(values, *symmetric_ends(ratio * largest)) - values).square().mean())
        for ratio in _FINE_RATIOS
    }
    return min(errors, key=lambda ratio: errors[ratio]) * largest


def _entropy_amax(values: "Tensor") -> float:
    from atlas_edge.quantize.onnx.fakequant import quiet_modelopt

    with quiet_modelopt():
        from modelopt.torch.quantization.calib import HistogramCalibrator

        calibrator = HistogramCalibrator(num_bits=8, axis=None, unsigned=False, num_bins=_HISTOGRAM_BINS)
        calibrator.collect(values)
        return float(calibrator.compute_amax("entropy", stride=_HISTOGRAM_STRIDE))
