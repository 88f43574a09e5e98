"""What is known of a Linear's inputs when its weights are fitted: mean and second moments, never all outputs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 256


class Moments:
    """Mean and second moments of what a Linear reads as quantized, CLS tokens weighing more than others.

    Args:
        inputs: `(N, T, C)`, CLS first.
        cls_weight: Weight of a CLS token relative to any other.

    Attributes:
        mean: `(C,)`.
        gram: `(C, C)` sum of the products of centred inputs, `X^T X`.
    """

    def __init__(self, inputs: "Tensor", cls_weight: float) -> None:
        import torch

        count, tokens, channels = inputs.shape
        weights = torch.ones(count, tokens, 1)
        weights[:, 0] = cls_weight
        self._weights = (weights / weights.mean()).reshape(-1, 1)
        self._root = self._weights.sqrt()
        inputs = inputs.reshape(-1, channels)
        self.mean = (self._weights * inputs).mean(0)
        self._rows = (inputs - self.mean).mul_(self._root)
        self.gram = _gram(self._rows)

    def against(self, values: "Tensor") -> "tuple[Tensor, Tensor]":
        """Mean `(K,)` of `(N, T, K)`, and the sum `(C, K)` of the centred products with the inputs, `X^T V`."""
        values = values.reshape(-1, values.shape[-1])
        mean = (self._weights * values).mean(0)
        return mean, self._rows.T @ (values - mean).mul_(self._root)


def _gram(rows: "Tensor") -> "Tensor":
    """`rows^T rows`, of which the lower half is not computed."""
    import torch

    channels = rows.shape[1]
    upper = torch.zeros(channels, channels)
    for start in range(0, channels, _BLOCK):
        stop = min(start + _BLOCK, channels)
        upper[start:stop, start:] = rows[:, start:stop].T @ rows[:, start:]
    return upper.triu() + upper.triu(1).T
