"""Token merging: patch tokens of a tile that are alike become one, and later blocks have less to compute.

Token Merging (Bolya 2023, arXiv:2210.09461) without its training: in each block, between attention and MLP, the tokens
are parted into two halves, and those of the first half that have the nearest partner in the second are joined to it, by
means weighted by how many patches each stands for; scores of attention get the logarithm of that number (proportional
attention). Three things are done otherwise, each because it loses less (docs/notes/2026-11-30-merging.md):

- what is compared is the residual stream itself, standardised, not the keys;
- a distance counts by the square root of the attention that the CLS token pays in that block: what it does not look at
  goes first;
- the first halves are the two colours of a checkerboard, so that a patch has four neighbours to go to.

How many tokens go is the same for every tile, so that graphs stay static.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from atlas_edge.errors import UsageError

if TYPE_CHECKING:
    from atlas_edge.models.folding.vit import FoldedVit

# The share of the blocks that a tile passes with all its tokens.
_WHOLE_BLOCKS = 1 / 3
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream between two stages of a block.

    Attributes:
        tokens: `(B, N, D)`.
        sizes: `(B, N)` how many patches each token stands for; None before anything was merged.
        places: `(B, N)` the place of each token among those of the first block; likewise.
    """

    tokens: Tensor
    sizes: Tensor | None = None
    places: Tensor | None = None

    def split(self, count: int) -> "list[Stream]":
        """Pieces of at most `count` tiles."""
        rest = (None if part is None else part.split(count) for part in (self.sizes, self.places))
        sizes, places = rest
        pieces = self.tokens.split(count)
        return [
            Stream(piece, None if sizes is None else sizes[at], None if places is None else places[at])
            for at, piece in enumerate(pieces)
        ]

    @classmethod
    def joined(cls, pieces: "list[Stream]") -> "Stream":
        """What `split` took apart."""
        sizes = [piece.sizes for piece in pieces if piece.sizes is not None]
        places = [piece.places for piece in pieces if piece.places is not None]
        return cls(
            torch.cat([piece.tokens for piece in pieces]),
            torch.cat(sizes) if sizes else None,
            torch.cat(places) if places else None,
        )

    def first(self) -> "Stream":
        """Its first token alone."""
        return Stream(self.tokens[:, :1])


def with_merging(folded: "FoldedVit", factor: float) -> "FoldedVit":
    """Let the blocks of a network merge tokens until they have `factor` times less to compute; changed in place.

    Args:
        folded: From `fold_vit`.
        factor: 1 merges nothing.

    Raises:
        UsageError: So many tokens are not there, or the network gives its patch tokens out.
    """
    if factor == 1:
        return folded
    for index, count in merge_schedule(folded, factor).items():
        folded.blocks[index].merged = count
    folded.order = checkerboard(*folded.grid)
    # Blocks may share a rotation.
    for rotation in {block.attn.rotation for block in folded.blocks if block.attn.rotation is not None}:
        rotation.reorder(folded.order)
    return folded


def merge_schedule(folded: "FoldedVit", factor: float) -> dict[int, int]:
    """Block -> how many tokens it merges: equally many in each from a third of the depth on, but for the last block.

    Raises:
        UsageError: So many tokens are not there, or the network gives its patch tokens out.
    """
    if folded.gives_tokens:
        raise UsageError(
            "patch tokens are asked for, and merging leaves fewer of them", hint="leave one of the two out"
        )
    depth, patches = len(folded.blocks), folded.token_count
    blocks = range(min(round(depth * _WHOLE_BLOCKS), depth - 2), depth - 1)
    whole = block_work(folded, {})
    most = 1.0
    # Each merges at most half of its tokens, and leaves two.
    for count in range(1, patches):
        schedule, left = {}, patches
        for index in blocks:
            taken = min(count, left // 2, max(left - 2, 0))
            if taken > 0:
                schedule[index] = taken
            left -= taken
        most = max(most, whole / block_work(folded, schedule))
        if most >= factor:
            return schedule
    raise UsageError(
        f"merging tokens saves at most {most:.2f} times the work of this network, {factor:g} were asked for",
        hint="ask for less",
    )


def block_work(folded: "FoldedVit", schedule: Mapping[int, int]) -> float:
    """Multiplications of all blocks for one tile, in products and attention, with so many tokens merged in each."""
    width, patches = folded.positions.shape[-1], folded.token_count
    count, total = folded.prefix.shape[1] + patches, 0.0
    for index, block in enumerate(folded.blocks):
        attention, mlp = block.attn, block.mlp
        inner = attention.num_heads * attention.head_dim
        queried = 1 if block.cls_only else count
        total += 2 * count * width * inner + 2 * queried * width * inner + 2 * queried * count * inner
        count -= schedule.get(index, 0)
        hidden = (len(mlp.first) + 1) * width * mlp.fc2.in_features
        total += hidden * (1 if block.cls_only else count)
    return total


def checkerboard(rows: int, columns: int) -> Tensor:
    """`(rows * columns,)` patches in the order in which those of one colour have even places, of the other odd ones."""
    places = torch.arange(rows * columns)
    colour = (places // columns + places % columns) % 2
    order = torch.empty_like(places)
    order[0::2], order[1::2] = places[colour == 0], places[colour == 1]
    return order


def merge(stream: Stream, attention: Tensor | None, count: int, prefix: int) -> Stream:
    """Merge `count` tokens into others.

    Args:
        stream: After attention.
        attention: `(B, N)` that the CLS token pays to each token; None where there is none: all count alike.
        count: How many; at most half of the tokens behind the prefix.
        prefix: Tokens before the patches, which stay as they are.

    Returns:
        The prefix, what is left of the patches at even places, and those at odd places.
    """
    tokens = stream.tokens
    # Whole numbers, where a graph is traced, too: they are the same for every tile.
    batch, (total, width) = tokens.shape[0], map(int, tokens.shape[1:])
    odds = (total - prefix) // 2
    sizes = torch.ones_like(tokens[..., 0]) if stream.sizes is None else stream.sizes
    places = torch.arange(total).expand(batch, -1) if stream.places is None else stream.places
    patches = tokens[:, prefix:]
    with torch.no_grad():
        bare = functional.layer_norm(patches, (width,), eps=_EPS)
        distance = 1 - bare[:, 0::2] @ bare[:, 1::2].transpose(1, 2) / width
        if attention is not None:
            distance = distance * attention[:, prefix::2, None].sqrt()
        nearest, partner = distance.min(dim=2)
        order = _ascending(nearest)
    gone, left = order[:, :count], order[:, count:]
    even, odd = (Stream(patches[:, at::2], sizes[:, prefix + at :: 2], places[:, prefix + at :: 2]) for at in (0, 1))
    moved, stays = _taken(even, gone), _taken(even, left)
    assert moved.sizes is not None and odd.sizes is not None
    goes = functional.one_hot(partner.gather(1, gone), odds).to(tokens.dtype).transpose(1, 2)
    grown = odd.sizes + (goes @ moved.sizes[..., None])[..., 0]
    joined = odd.tokens * odd.sizes[..., None] + goes @ (moved.tokens * moved.sizes[..., None])
    odd = replace(odd, tokens=joined / grown[..., None], sizes=grown)
    before = Stream(tokens[:, :prefix], sizes[:, :prefix], places[:, :prefix])
    parts = (before, stays, odd)
    return Stream(
        torch.cat([part.tokens for part in parts], dim=1),
        torch.cat([part.sizes for part in parts if part.sizes is not None], dim=1),
        torch.cat([part.places for part in parts if part.places is not None], dim=1),
    )


def mean_of(stream: Stream, start: int) -> Tensor:
    """The mean of the tokens from `start` on, each as often as it stands for a patch: `(B, D)`."""
    tokens = stream.tokens[:, start:]
    if stream.sizes is None:
        return tokens.mean(dim=1)
    sizes = stream.sizes[:, start:, None]
    return (tokens * sizes).sum(dim=1) / sizes.sum(dim=1)


def _ascending(values: Tensor) -> Tensor:
    """Indices of `(B, N)` from the smallest on, the first of equals first."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no sort, and its TopK keeps the order of equals, which PyTorch's does not.
        return values.topk(int(values.shape[1]), dim=1, largest=False).indices
    return values.argsort(dim=1, stable=True)


def _taken(stream: Stream, chosen: Tensor) -> Stream:
    assert stream.sizes is not None and stream.places is not None
    rows = chosen[..., None].expand(-1, -1, stream.tokens.shape[-1])
    return Stream(stream.tokens.gather(1, rows), stream.sizes.gather(1, chosen), stream.places.gather(1, chosen))
