"""Ranges and smoothing scales of a layer's input, chosen by the error of its output or of the input itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_edge.quantize.numerics.rounding import fake_int8, fake_weight, smooth_scale
from atlas_edge.quantize.recipe import Calibrator

if TYPE_CHECKING:
    from torch import Tensor

ALPHAS = (0.5, 0.65, 0.8)
_RATIOS = (1.0, 0.85, 0.7)
_PERCENTILE = 0.9999
_HISTOGRAM_BINS, _HISTOGRAM_STRIDE = 2048, 16
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


def choose_range(
    inputs: "Tensor",
    peak: "Tensor",
    weight: "Tensor",
    *,
    alphas: Sequence[float] = ALPHAS,
    calibrator: Calibrator = "mse",
    levels: int = 127,
) -> InputRange:
    """Choose the smoothing strength, and with `mse` how much of the range to clip, by the error of the layer's output.

    Args:
        inputs: `(n, C)` sampled tokens; a thousand are enough.
        peak: `(C,)` largest absolute values over all tokens.
        weight: `(O, C)`.
        alphas: Strengths to try; -1 moves nothing.
        calibrator: `mse` tries several shares of the full range; the others clip as `clipped_amax` says.
        levels: Largest integer of the weights' grid.
    """
    wanted = inputs @ weight.T
    power = float(wanted.square().mean().clamp(min=1e-12))
    best: InputRange | None = None
    for alpha in alphas:
        scale = smooth_scale(peak, weight, alpha)
        smoothed, rounded = inputs / scale, fake_weight(weight * scale, levels)
        largest = float((peak / scale).amax())
        tried = [ratio * largest for ratio in _RATIOS]
        for amax in tried if calibrator == "mse" else [clipped_amax(smoothed, largest, calibrator)]:
            error = float((fake_int8(smoothed, amax) @ rounded.T - wanted).square().mean()) / power
            if best is None or error < best.error:
                best = InputRange(scale=scale, amax=amax, alpha=alpha, error=error)
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
    errors = {ratio: float((fake_int8(values, ratio * largest) - values).square().mean()) for ratio in _FINE_RATIOS}
    return min(errors, key=lambda ratio: errors[ratio]) * largest


def _entropy_amax(values: "Tensor") -> float:
    from atlas_edge.quantize.onnx.fakequant import quiet_modelopt

    with quiet_modelopt():
        from modelopt.torch.quantization.calib import HistogramCalibrator

        calibrator = HistogramCalibrator(num_bits=8, axis=None, unsigned=False, num_bins=_HISTOGRAM_BINS)
        calibrator.collect(values)
        return float(calibrator.compute_amax("entropy", stride=_HISTOGRAM_STRIDE))
