"""Weights on an INT8 grid, chosen so that a Linear's output keeps close to what full precision computes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_edge.quantize.numerics.rounding import fake_weight

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 32


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
    hessian = gram[order][:, order].double()
    hessian.diagonal().add_(damp * hessian.diagonal().mean().clamp(min=1e-8))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    diagonal = upper.diagonal().tolist()
    # Columns as rows, which lie together.
    sought = weight[:, order].double().T.contiguous()
    largest = weight.abs().amax(1).clamp(min=1e-8).double()
    step = largest / levels
    rounded, errors = torch.empty_like(sought), torch.empty_like(sought)
    for start in range(0, len(sought), _BLOCK):
        stop = min(start + _BLOCK, len(sought))
        for column in range(start, stop):
            torch.div(sought[column], step, out=rounded[column]).round_().clamp_(-levels, levels).mul_(step)
            torch.sub(sought[column], rounded[column], out=errors[column]).div_(diagonal[column])
            sought[column + 1 : stop].addr_(upper[column, column + 1 : stop], errors[column], alpha=-1)
        sought[stop:].addmm_(upper[start:stop, stop:].T, errors[start:stop], alpha=-1)
    back = torch.argsort(order)
    rounded, sought = (columns[back].T.to(weight.dtype) for columns in (rounded, sought.clamp(-largest, largest)))
    return RoundedWeights(rounded, sought, largest.to(weight.dtype))


def nearest_weights(weight: "Tensor", *, levels: int = 127) -> RoundedWeights:
    """The same without a look at inputs: every weight goes to the nearest point of the grid."""
    return RoundedWeights(fake_weight(weight, levels), weight, weight.abs().amax(1).clamp(min=1e-8))
