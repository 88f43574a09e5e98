"""What is known of a tensor that Linears read: ranges, sampled tokens, mean and second moments."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Tokens of a tile that weights are rounded by, its CLS token among them. Ranges come from all tokens.
_SAMPLED_TOKENS = 32
# CLS tokens and others that choose strength and range: one to three, whatever the number of tiles.
_CHOOSING_CLS, _CHOOSING_OTHERS = 256, 768
_BLOCK = 256


class Channels:
    """The range of each channel of a tensor, over all calibration tiles."""

    def __init__(self) -> None:
        import torch

        self.low: Tensor = torch.tensor(torch.inf)
        self.high: Tensor = torch.tensor(-torch.inf)

    def add(self, tokens: "Tensor") -> None:
        """Take in a batch `(B, N, C)`."""
        import torch

        self.low = torch.minimum(self.low, tokens.amin((0, 1)))
        self.high = torch.maximum(self.high, tokens.amax((0, 1)))

    def shift(self, offset: "Tensor") -> None:
        """Take a constant `(C,)` from every token."""
        self.low, self.high = self.low - offset, self.high - offset

    @property
    def peak(self) -> "Tensor":
        """Largest absolute value of each channel, `(C,)`."""
        import torch

        return torch.maximum(self.high, -self.low).clamp(min=1e-6)


class Inputs(Channels):
    """What a Linear reads: the range of each channel, and sampled tokens."""

    def __init__(self) -> None:
        import torch

        super().__init__()
        self._rows: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def add(self, tokens: "Tensor") -> None:
        """Take in a batch `(B, N, C)`."""
        import torch

        super().add(tokens)
        others = torch.randperm(tokens.shape[1] - 1, generator=self._generator)[: _SAMPLED_TOKENS - 1]
        self._rows.append(tokens[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + others])])

    @property
    def rows(self) -> "Tensor":
        """`(n, C)`."""
        import torch

        return torch.cat(self._rows).flatten(0, 1)

    @property
    def choosing(self) -> "Tensor":
        """`(n, C)`: a fixed number of CLS tokens and of others; tiles are taken again where there are fewer."""
        import torch

        tiles = torch.cat(self._rows)
        return torch.cat([_spread(tiles[:, 0], _CHOOSING_CLS), _spread(tiles[:, 1:].flatten(0, 1), _CHOOSING_OTHERS)])

    def shift(self, offset: "Tensor") -> None:
        """Take a constant `(C,)` from every token."""
        super().shift(offset)
        self._rows = [rows - offset for rows in self._rows]

    def divide(self, scale: "Tensor") -> None:
        """Divide every token by a positive scale `(C,)`."""
        self.low, self.high = self.low / scale, self.high / scale
        self._rows = [rows / scale for rows in self._rows]


def moments(rows: "Tensor") -> "tuple[Tensor, Tensor]":
    """Mean `(C,)` and covariance `(C, C)` of tokens `(n, C)`."""
    import torch

    mean = rows.mean(0)
    rows, channels = rows - mean, rows.shape[1]
    # The lower half follows from the upper one.
    upper = torch.zeros(channels, channels)
    for start in range(0, channels, _BLOCK):
        stop = min(start + _BLOCK, channels)
        upper[start:stop, start:] = rows[:, start:stop].T @ rows[:, start:]
    return mean, (upper.triu() + upper.triu(1).T) / len(rows)


def _spread(rows: "Tensor", count: int) -> "Tensor":
    """So many rows, evenly from all of them, some more than once where there are fewer; none of none."""
    import torch

    return rows[torch.linspace(0, len(rows) - 1, count).long()] if len(rows) else rows
