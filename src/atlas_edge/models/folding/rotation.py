"""Rotary positions: pairs of query and key channels turned by an angle that depends on the token's place."""

from typing import Any

import torch
from torch import Tensor, nn


class Rotation(nn.Module):
    """Turns channels `i` and `i + head_dim / 2` of every head, CLS and registers by nothing.

    Attributes:
        cos: `(heads or 1, N, head_dim)`, the prefix tokens among them.
        sin: Likewise.
        order: `(head_dim,)` channels of the original network in the order that this takes.
        prefix_tokens: Tokens that are not turned.
    """

    cos: Tensor
    sin: Tensor
    order: Tensor

    def __init__(self, table: Tensor, *, prefix_tokens: int, half: bool) -> None:
        """Take a table `(heads or 1, patches, 2 * head_dim)` of timm's: sines, then cosines.

        With `half` it is for pairs that lie half a head apart, otherwise for neighbours.
        """
        super().__init__()
        width = table.shape[-1] // 2
        order = torch.arange(width) if half else torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
        sin, cos = (part[..., order] for part in table.detach().float().chunk(2, dim=-1))
        still = torch.zeros(table.shape[0], prefix_tokens, width)
        self.register_buffer("sin", torch.cat([still, sin], dim=1))
        self.register_buffer("cos", torch.cat([still + 1, cos], dim=1))
        self.register_buffer("order", order)
        self.prefix_tokens = prefix_tokens

    def forward(self, heads: Tensor, places: Tensor | None = None) -> Tensor:
        """`(B, heads, N, head_dim)` of the tokens at `places`, `(B, N)`; without them of the first."""
        first, second = heads.chunk(2, dim=-1)
        cos, sin = (self._at(table, places, heads.shape[2]) for table in (self.cos, self.sin))
        return heads * cos + torch.cat([-second, first], dim=-1) * sin

    def reorder(self, order: Tensor) -> None:
        """Bring the patches into another order, `(patches,)` of their places so far."""
        whole = torch.cat([torch.arange(self.prefix_tokens), self.prefix_tokens + order])
        self.cos, self.sin = self.cos[:, whole], self.sin[:, whole]

    @staticmethod
    def _at(table: Tensor, places: Tensor | None, count: int) -> Tensor:
        # (heads or 1, B, N, head_dim) -> (B, heads or 1, N, head_dim)
        return table[:, :count] if places is None else table[:, places].transpose(0, 1)

    def over_pairs(self, channels: Tensor) -> Tensor:
        """The larger of each pair of `(..., head_dim)`, at both places."""
        first, second = channels.chunk(2, dim=-1)
        return torch.maximum(first, second).repeat(1, 2)


def rotations(backbone: Any) -> list[Rotation | None]:
    """The rotation of each block of a timm backbone, one and the same where its blocks share it."""
    embedding = getattr(backbone, "rope", None)
    if embedding is None:
        return [None] * len(backbone.blocks)
    table = embedding.get_embed(shape=list(backbone.patch_embed.grid_size))
    options = {"prefix_tokens": backbone.num_prefix_tokens, "half": bool(backbone.blocks[0].attn.rotate_half)}
    if backbone.rope_mixed:  # (depth, heads, patches, 2 * head_dim)
        return [Rotation(of_block, **options) for of_block in table]
    return [Rotation(table[None], **options)] * len(backbone.blocks)
