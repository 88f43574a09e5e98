"""Rounding to a grid, kept in floating point, and the scales that fit tensors to grids, for every target."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVELS, LARGEST = 255, 127


def fake_int8(values: "Tensor", amax: float) -> "Tensor":
    """Round to the 255 levels of symmetric INT8 and clip at `amax`."""
    step = amax / LARGEST
    return (values / step).round_().clamp_(-128, LARGEST).mul_(step)


def fake_round(values: "Tensor", low: float, high: float, levels: int = LEVELS) -> "Tensor":
    """The nearest of the `levels + 1` evenly spaced values between `low` and `high`."""
    step = (high - low) / levels
    return ((values - low) / step).round_().clamp_(0, levels).mul_(step).add_(low)


def fake_weight(weight: "Tensor", levels: int = LARGEST) -> "Tensor":
    """Round `(O, C)` weights to a symmetric grid per output channel."""
    step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / levels
    return (weight / step).round_().clamp_(-levels, levels).mul_(step)


def grid_ends(low: float, high: float, levels: int = LEVELS) -> tuple[float, float]:
    """The ends of `levels + 1` evenly spaced values that cover `low` to `high` and hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, 1e-8) / levels
    zero = round(-low / step)
    return -zero * step, (levels - zero) * step


def symmetric_ends(peak: float) -> tuple[float, float]:
    """The ends of 256 evenly spaced values that cover `-peak` to `peak` with zero at signed 0, no zero point."""
    step = max(peak, 1e-8) / LARGEST
    return -(LARGEST + 1) * step, LARGEST * step


def smooth_scale(peak: "Tensor", weight: "Tensor", alpha: float) -> "Tensor":
    """SmoothQuant's scale `max|x_j|^alpha / max|w_j|^(1 - alpha)` (arXiv:2211.10438, equation 4), `(C,)`.

    Args:
        peak: `(C,)` largest absolute inputs.
        weight: `(O, C)`.
        alpha: Strength; negative gives ones.
    """
    return _smooth_ratio(peak, weight, alpha, 1e-5, 1e-5).clamp(1e-4, 1e4)


def even_smooth_scale(peak: "Tensor", weight: "Tensor", alpha: float) -> "Tensor":
    """SmoothQuant's scale with a geometric mean of one, which leaves the size of the whole as it is."""
    scale = _smooth_ratio(peak, weight, alpha, 1e-4, 1e-6)
    return scale if alpha < 0 else scale / scale.log().mean().exp()


def _smooth_ratio(peak: "Tensor", weight: "Tensor", alpha: float, least_peak: float, least_weight: float) -> "Tensor":
    import torch

    if alpha < 0:
        return torch.ones_like(peak)
    largest = weight.abs().amax(0).clamp(min=least_weight)
    return peak.clamp(min=least_peak) ** alpha / largest ** (1 - alpha)
