"""What a fit looks at: the residual streams of both networks, the weight of each token, and least squares over them."""

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 3e-3
# Fits look at one patch in so many: neighbours are alike, and more tiles are worth more than more patches.
_PATCH_STEP = 4
# CLS tokens carry this share of every fit: there is one for some 200 patch tokens.
_CLS_SHARE = 0.1


@dataclass(slots=True)
class Streams:
    """Residual streams of one batch, both changed in place block by block, and the tokens that fits look at."""

    own: Tensor
    teacher: Tensor
    tokens: Tensor

    @property
    def weights(self) -> Tensor:
        """Of the teacher's current tokens in a fit, `(B, seen tokens)`."""
        return _token_weights(self.teacher[:, self.tokens])


class Moments:
    """Weighted Gram matrix of inputs with a bias column, cross moments with targets, and the targets' energy."""

    def __init__(self) -> None:
        self.gram, self.cross, self.power = torch.zeros(()), torch.zeros(()), 0.0

    def add(self, part: Streams, inputs: Tensor, target: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch's `(B, tokens, …)` inputs and targets: float32 products, summed in float64."""
        rows = (part.weights if weights is None else weights).flatten()[:, None]
        x, y = (tensor[:, part.tokens].flatten(0, 1).float() for tensor in (inputs, target))
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        scaled = x * rows
        with torch.autocast("cpu", enabled=False):
            self.gram = self.gram + (scaled.T @ x).double()
            self.cross = self.cross + (scaled.T @ y).double()
        self.power += float((y.square() * rows).sum())

    def shifted(self, shift: Tensor) -> "Moments":
        """As if `(inputs,)` had been added to every input."""
        found = Moments()
        move = torch.eye(len(self.gram), dtype=self.gram.dtype)
        move[:-1, -1] = shift.double()
        found.gram, found.cross, found.power = move @ self.gram @ move.T, move @ self.cross, self.power
        return found

    def ridge(self, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight and bias of the damped least-squares map to all target columns, or to some."""
        cross = self.cross if columns is None else self.cross[:, columns]
        solution = torch.linalg.solve(damped(self.gram), cross).float()
        return solution[:-1].T.contiguous(), solution[-1]

    def ridge_without_bias(self, columns: Tensor) -> Tensor:
        """Weight of such a map that adds no bias."""
        inputs = self.gram[:-1, :-1]
        damping = torch.eye(len(inputs), dtype=inputs.dtype) * (_RIDGE * inputs.diagonal().mean())
        return torch.linalg.solve(inputs + damping, self.cross[:-1, columns]).float().T.contiguous()


def damped(gram: Tensor) -> Tensor:
    """A Gram matrix with a bias column, made safe to invert."""
    return gram + torch.eye(len(gram), dtype=gram.dtype) * (_RIDGE * gram.diagonal()[:-1].mean())


def seen_tokens(tokens: int, number: int) -> Tensor:
    """Tokens of one batch that fits look at: CLS, and of a large grid every fourth patch, in turn."""
    step = _PATCH_STEP if tokens > 64 else 1
    return torch.tensor([0, *range(1 + number % step, tokens, step)])


def _token_weights(states: Tensor) -> Tensor:
    """Weight of each token in a fit: CLS gets its share, and every token counts by direction.

    LayerNorm divides each token by its deviation, so an error matters relative to it.
    """
    centred = states - states.mean(-1, keepdim=True)
    return token_shares(states) / centred.square().mean(-1).clamp_min(1e-6)


def token_shares(states: Tensor) -> Tensor:
    """Share of each token in a fit, `(B, tokens)`, that of CLS being set."""
    images, tokens, _ = states.shape
    shares = torch.full((images, tokens), (1 - _CLS_SHARE) / (tokens - 1))
    shares[:, 0] = _CLS_SHARE
    return shares
