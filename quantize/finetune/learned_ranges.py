"""Ranges of layers' inputs that training moves along with the weights.

Learned Step Size Quantization (Esser et al., ICLR 2020, arXiv:1902.08153), on a range's logarithm: a step of the
optimiser changes a range by a share of itself, whatever its unit. The weights' ranges, thousands with few values each,
stay: their derivatives are noise on small batches.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer

PARAMETER = "log_range"
_QUANTIZER = "input_quantizer"


def learn_ranges(module: nn.Module) -> None:
    """Give every input quantizer that is on a trainable range, a parameter called `log_range`.

    Args:
        module: With ModelOpt quantizers whose ranges are set. Changed in place; `keep_ranges` turns it back.
    """
    for layer in list(module.modules()):
        quantizer = getattr(layer, _QUANTIZER, None)
        if quantizer is not None and quantizer.is_enabled:
            setattr(layer, _QUANTIZER, _Learned(quantizer))


def keep_ranges(module: nn.Module) -> None:
    """Put ModelOpt's quantizers back, with the ranges that were learned."""
    for layer in list(module.modules()):
        learned = getattr(layer, _QUANTIZER, None)
        if isinstance(learned, _Learned):
            learned.quantizer.amax = learned.log_range.detach().exp()
            setattr(layer, _QUANTIZER, learned.quantizer)


class _Learned(nn.Module):
    """Rounds as the quantizer that it stands in for."""

    def __init__(self, quantizer: "TensorQuantizer") -> None:
        super().__init__()
        self.quantizer = quantizer
        self.levels = 2 ** (quantizer.num_bits - 1) - 1
        self.log_range = nn.Parameter(quantizer.amax.detach().float().log())

    def forward(self, values: Tensor) -> Tensor:
        scale = self.quantizer.pre_quant_scale
        rounded: Tensor = _Rounding.apply(values if scale is None else values * scale, self.log_range, self.levels)
        return rounded


class _Rounding(torch.autograd.Function):
    """Rounding to `levels` steps on each side of 0; straight through for what lies within the range.

    A range grows with what it clips, and with what the larger step moves away from 0: the derivative of a rounded value
    by the logarithm of its range is that value, less the value before rounding where it was not clipped (eq. 3 of
    Esser et al., times the step).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, log_range: Tensor, levels: int) -> Tensor:
        span = log_range.exp()
        step = span / levels
        rounded = (values / step).round_().clamp_(-levels, levels).mul_(step)
        ctx.save_for_backward(values, rounded, span)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        values, rounded, span = ctx.saved_tensors
        passed = gradient * (values.abs() <= span)
        ranges = (gradient * rounded).sub_(passed * values)
        return passed, ranges.sum_to_size(span.shape), None
