"""A student that computes as INT8 does: inputs and weights of Linear layers rounded, on the grids that exports use.

In the forward pass values are rounded, in the backward pass the rounding is passed over (straight-through: Bengio et
al., arXiv:1308.3432; Jacob et al., CVPR 2018, arXiv:1712.05877, section 3).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LEVELS, _LARGEST = 255, 127


def rounding(*, wanted: bool) -> AbstractContextManager[object]:
    """In which Linear layers compute with rounded inputs and weights, if wanted."""
    return _Rounding() if wanted else nullcontext()


class _Rounding(TorchFunctionMode):
    """Linear layers compute with rounded inputs and weights, whoever calls them; biases stay as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(rounded_input(input), rounded_weight(weight), bias)


def rounded_input(values: Tensor) -> Tensor:
    """On 256 evenly spaced values that cover all of a batch, one range for the tensor, with zero among them."""
    with torch.no_grad():
        exact = values.float()
        low, high = exact.amin().clamp(max=0), exact.amax().clamp(min=0)
        step = (high - low).clamp(min=1e-8) / _LEVELS
        zero = (-low / step).round()
        grid = ((exact / step).round() + zero).clamp(0, _LEVELS)
        change = (grid - zero) * step - exact
    return values + change.to(values.dtype)


def rounded_weight(weight: Tensor) -> Tensor:
    """`(O, C)` on a symmetric grid per output channel, its largest weight being 127 steps."""
    with torch.no_grad():
        exact = weight.float()
        step = exact.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST
        change = (exact / step).round() * step - exact
    return weight + change.to(weight.dtype)
