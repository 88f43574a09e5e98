"""Rounding to a grid, kept in floating point, and the scales that fit tensors to grids, for every target."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVELS, LARGEST = 255, 127


def largest_integer(bits: int) -> int:
    """Of a symmetric grid: 127 for 8 bits, 63 for 7."""
    return int(2 ** (bits - 1)) - 1


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

    Its geometric mean is one, which leaves the size of the whole as it is.

    Args:
        peak: `(C,)` largest absolute inputs.
        weight: `(O, C)`.
        alpha: Strength; negative gives ones.
    """
    import torch

    if alpha < 0:
        return torch.ones_like(peak)
    largest = weight.abs().amax(0).clamp(min=1e-6)
    scale = peak.clamp(min=1e-4) ** alpha / largest ** (1 - alpha)
    return scale / scale.log().mean().exp()
