"""One block of a folded vision transformer."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from atlas_edge.models.folding.attention import FoldedAttention
from atlas_edge.models.folding.linear import standardise
from atlas_edge.models.folding.merging import Stream, merge
from atlas_edge.models.folding.mlp import fold_mlp
from atlas_edge.models.folding.rotation import Rotation


@dataclass(frozen=True, slots=True)
class ProductInput:
    """A tensor that matrix products of a block read.

    Attributes:
        products: Who reads it, as `attn.q`.
        linear_in: The product in whose rows it is linear, channel by channel: to divide those by a scale divides it,
            exactly and without a multiplication. None where it comes from a norm or an activation, and a scale of its
            channels is a multiplication.
    """

    products: tuple[str, ...]
    linear_in: str | None = None


class FoldedBlock(nn.Module):
    """One transformer block after folding; with `cls_only`, `(B, N, D)` in and `(B, 1, D)` out.

    Attributes:
        prefix: Tokens before the patches.
        asks_cls: Whether the attention of the first token, CLS, says which tokens matter when some are merged.
        merged: How many tokens are merged between attention and MLP.
    """

    def __init__(
        self, block: Any, rotation: Rotation | None, *, cls_only: bool, prefix: int = 1, asks_cls: bool = True
    ) -> None:
        super().__init__()
        self.cls_only, self.prefix, self.asks_cls, self.merged = cls_only, prefix, asks_cls, 0
        attended, mixed = _layer_scales(block)
        self.attn = FoldedAttention(block.attn, block.norm1, attended, rotation)
        self.mlp = fold_mlp(block.mlp, block.norm2, mixed)
        self.eps1, self.eps2 = block.norm1.eps, block.norm2.eps

    @property
    def inputs(self) -> tuple[ProductInput, ...]:
        """What its products read, in the order in which they compute."""
        first = (("attn.q",), ("attn.k", "attn.v")) if self.cls_only else (("attn.q", "attn.k", "attn.v"),)
        value = "attn.v" if self.attn.inner_eps is None else None
        hidden = self.mlp.linear_in
        return (
            *(ProductInput(products) for products in first),
            ProductInput(("attn.proj",), linear_in=value),
            ProductInput(tuple(f"mlp.{name}" for name in self.mlp.first)),
            ProductInput(("mlp.fc2",), linear_in=None if hidden is None else f"mlp.{hidden}"),
        )

    def forward(self, stream: Stream) -> Stream:
        """Attention and MLP, each added to the tokens."""
        normed = standardise(stream.tokens, self.eps1)
        attended = self.attended(normed, stream)
        stream = self.after_attention(normed, stream, self.kept(stream).tokens + attended)
        return replace(stream, tokens=stream.tokens + self.mlp(standardise(stream.tokens, self.eps2)))

    def kept(self, stream: Stream) -> Stream:
        """The part of the stream that goes on."""
        return stream.first() if self.cls_only else stream

    def attended(self, normed: Tensor, stream: Stream) -> Tensor:
        """What attention adds to what is kept; `normed` is `(B, N, D)`, the stream's tokens standardised."""
        attended: Tensor = self.attn(normed[:, :1] if self.cls_only else normed, normed, stream)
        return attended

    def after_attention(self, normed: Tensor, stream: Stream, tokens: Tensor) -> Stream:
        """The stream with `tokens`, what was kept and attended, in which some are merged."""
        after = replace(self.kept(stream), tokens=tokens)
        if not self.merged:
            return after
        attention = self.attn.of_cls(normed, stream) if self.asks_cls else None
        return merge(after, attention, self.merged, self.prefix)


def _layer_scales(block: Any) -> tuple[Tensor | None, Tensor | None]:
    """LayerScale of attention and MLP: modules in timm's `Block`, parameters in its `EvaBlock`."""
    if hasattr(block, "ls1"):
        found = [getattr(scale, "gamma", None) for scale in (block.ls1, block.ls2)]
    else:
        found = [block.gamma_1, block.gamma_2]
    attended, mixed = (None if gamma is None else gamma.detach() for gamma in found)
    return attended, mixed
