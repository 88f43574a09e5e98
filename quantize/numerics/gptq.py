"""Weights on an INT8 grid, chosen so that a Linear's output keeps close to what full precision computes.

Both steps are closed-form and change weights only; nothing is added to the graph.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class RoundedWeights:
    """Weights on a symmetric grid per output channel.

    Attributes:
        weight: `(O, C)` on the grid.
        sought: `(O, C)` what each weight was rounded from, errors of other columns included, cut at the grid's ends. To
            round it to the nearest gives `weight`.
        largest: `(O,)` largest value that the grid holds; its step is that divided by the number of levels.
    """

    weight: "Tensor"
    sought: "Tensor"
    largest: "Tensor"


def fit_weights(gram: "Tensor", cross: "Tensor", weight: "Tensor", *, ridge: float = 0.01) -> "Tensor":
    """The weights that map quantized inputs to wanted outputs best, held to the given ones by a ridge.

    `W' = argmin ||T - X W'||^2 + r ||W' - W||^2` with `r = ridge * mean diag(X^T X)`: what quantization upstream
    changed in the inputs is taken back as far as it is linear in them (the asymmetric calibration of GPTAQ,
    arXiv:2504.02692).

    Args:
        gram: `(C, C)`, `X^T X` of the inputs as the quantized layer sees them, centred.
        cross: `(C, O)`, `X^T T` with the outputs wanted, without bias, centred.
        weight: `(O, C)`.
        ridge: Strength of the hold, relative to the mean variance of an input.

    Returns:
        `(O, C)`.
    """
    import torch

    missed = cross.double() - gram.double() @ weight.T.double()
    step = torch.cholesky_solve(missed, torch.linalg.cholesky(damped(gram, ridge)))
    return weight + step.T.to(weight.dtype)


def round_weights(weight: "Tensor", gram: "Tensor", *, levels: int = 127, damp: float = 0.01) -> RoundedWeights:
    """Round weights to a symmetric grid per output channel, each column's error spread over those still to come.

    GPTQ (Frantar 2022, arXiv:2210.17323, algorithm 1), columns in the order of falling `diag(gram)`.

    Args:
        weight: `(O, C)`.
        gram: `(C, C)` of the layer's inputs, `X^T X`.
        levels: Largest integer of the grid: 127 for 8 bits, 7 for 4.
        damp: Share of the mean diagonal that is added to it.
    """
    import torch

    order = torch.argsort(gram.diagonal(), descending=True)
    hessian = damped(gram, damp)[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    left = weight[:, order].double()
    largest = weight.abs().amax(1).clamp(min=1e-8).double()
    step = (largest / levels)[:, None]
    rounded, sought = torch.empty_like(left), torch.empty_like(left)
    columns = left.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty_like(left[:, start:stop])
        for column in range(start, stop):
            value = left[:, column : column + 1]
            sought[:, column : column + 1] = value
            rounded[:, column : column + 1] = (value / step).round().clamp(-levels, levels) * step
            error = (value - rounded[:, column : column + 1]) / upper[column, column]
            left[:, column:stop] -= error @ upper[column : column + 1, column:stop]
            errors[:, column - start : column - start + 1] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    back = torch.argsort(order)
    sought = sought.clamp(-largest[:, None], largest[:, None])
    return RoundedWeights(*(found.to(weight.dtype) for found in (rounded[:, back], sought[:, back], largest)))


def damped(gram: "Tensor", share: float) -> "Tensor":
    """`gram` in double precision with a share of its mean diagonal added to the diagonal."""
    import torch

    gram = gram.double()
    return gram + share * gram.diagonal().mean().clamp(min=1e-8) * torch.eye(len(gram), dtype=torch.float64)
