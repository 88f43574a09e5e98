"""The two stages of a transformer block, attention and MLP, as quantization block by block sees them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atlas_edge.models.folding.merging import Stream
    from atlas_edge.quantize.numerics.moments import Channels


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A tensor that Linears read.

    Attributes:
        layers: These Linears, by name.
        divide: Divides the tensor by a scale `(C,)` in what makes it, exactly; None where that takes a multiplication.
    """

    layers: "Mapping[str, nn.Linear]"
    divide: "Callable[[Tensor], None] | None" = None

    @property
    def layer(self) -> "nn.Linear":
        """One of the Linears."""
        return next(iter(self.layers.values()))

    def smooth(self, scale: "Tensor") -> None:
        """Move a scale from the tensor into the weights; the network computes the same."""
        assert self.divide is not None
        self.divide(scale)
        for layer in self.layers.values():
            layer.weight.data = layer.weight * scale


class Scores(Protocol):
    """What can be changed in an attention without changing what it computes, before its grids are chosen.

    Attributes:
        makes: Modules that give query, key and value, `(B, heads, N, head_dim)` or `(B, N, C)`.
    """

    makes: "tuple[nn.Module, ...]"

    def adapt(self, *made: "Channels") -> "Tensor | None":
        """Change it, by the ranges of what `makes` gave.

        Returns:
            `(C,)` that is missing now from every token that the stage's second Linear reads; None without.
        """


@dataclass(frozen=True, slots=True)
class Stage:
    """Attention or MLP of a block.

    Attributes:
        norm: What is done to the residual stream before.
        body: What the stage computes of that and of the stream, which is added to the stream's tokens.
        first: What is read of the norm.
        second: What the Linear reads that writes to the residual stream.
        kept: The part of the stream that goes on, if not all of it.
        merge: What becomes of the stream after, of what `norm` gave, the stream before and its tokens after; None
            leaves it as it is.
        scores: See `Scores`; None where nothing of it is changed.
    """

    norm: "Callable[[Tensor], Tensor]"
    body: "Callable[[Tensor, Stream], Tensor]"
    first: tuple[Read, ...]
    second: Read
    kept: "Callable[[Stream], Stream] | None" = None
    merge: "Callable[[Tensor, Stream, Tensor], Stream] | None" = None
    scores: Scores | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its Linears, in the order in which they compute."""
        return tuple(name for read in (*self.first, self.second) for name in read.layers)

    def after(self, stream: "Stream") -> "Stream":
        """The residual stream after the stage."""
        normed = self.norm(stream.tokens)
        kept = stream if self.kept is None else self.kept(stream)
        tokens = kept.tokens + self.body(normed, stream)
        return replace(kept, tokens=tokens) if self.merge is None else self.merge(normed, stream, tokens)


def unfittable_part(module: "nn.Module") -> str | None:
    """The first part of an encoder that `blocks.fit_blocks` does not know, as `blocks.0 is a ResPostBlock`; or None."""
    from timm.layers import GluMlp, Mlp, SwiGLU
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import Eva, EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block
    from torch import nn

    backbone: Any = getattr(module, "backbone", module)
    blocks = getattr(backbone, "blocks", None)
    if blocks is None:
        return f"{type(backbone).__name__} is no plain vision transformer"
    # Only Eva itself hands the rotation of positions to its blocks as `stages` does.
    known = (Block, EvaBlock) if type(backbone) is Eva else (Block,)
    for index, block in enumerate(blocks):
        name = f"blocks.{index}"
        if type(block) not in known:
            return f"{name} is a {type(block).__name__}"
        for leaf, part, kinds in (
            ("attn", block.attn, (Attention, AttentionRope, EvaAttention)),
            ("mlp", block.mlp, (Mlp, GluMlp, SwiGLU)),
        ):
            if type(part) not in kinds:
                return f"{name}.{leaf} is a {type(part).__name__}"
        norms = {"norm1": block.norm1, "norm2": block.norm2, "attn.norm": block.attn.norm, "mlp.norm": block.mlp.norm}
        for leaf, norm in norms.items():
            inner = "." in leaf
            if not isinstance(norm, nn.LayerNorm if not inner else nn.LayerNorm | nn.Identity):
                return f"{name}.{leaf} is a {type(norm).__name__}"
            if getattr(norm, "weight", norm) is None:
                return f"{name}.{leaf} has no weight"
    return None


def stages(module: Any) -> Iterator[Stage]:
    """Those of every block of an encoder in which `unfittable_part` finds nothing, in the order of computation.

    LayerScale is folded into the Linears before it, in place.
    """
    for index, block in enumerate(module.backbone.blocks):
        name = f"backbone.blocks.{index}"
        for layer, scale, ls in ((block.attn.proj, "gamma_1", "ls1"), (block.mlp.fc2, "gamma_2", "ls2")):
            _fold_layer_scale(layer, getattr(block, scale, getattr(getattr(block, ls, None), "gamma", None)))
        yield _attention(block, f"{name}.attn", _rotation(module.backbone, index))
        yield _mlp(block, f"{name}.mlp")


def divide(part: Any, scale: "Tensor", rows: slice = slice(None)) -> None:
    """Divide what a norm, or some rows of a Linear, give by `(rows,)`, exactly."""
    for name in ("weight", "bias"):
        if getattr(part, name) is not None:
            values = getattr(part, name).data.clone()
            values[rows] /= scale.view(-1, *[1] * (values.dim() - 1))
            getattr(part, name).data = values


def _fold_layer_scale(layer: Any, gamma: Any) -> None:
    if gamma is None:
        return
    layer.weight.data = layer.weight.data * gamma.data[:, None]
    if layer.bias is not None:
        layer.bias.data = layer.bias.data * gamma.data
    # Ones rather than nothing: modules keep their names and kinds.
    gamma.data = gamma.new_ones(len(gamma))


def _attention(block: Any, name: str, rotation: "Tensor | None") -> Stage:
    attention = block.attn
    if attention.qkv is not None:
        leaves: tuple[str, ...] = ("qkv",)
        width = attention.proj.in_features
        values = attention.qkv, slice(2 * width, 3 * width)
    else:
        leaves = ("q_proj", "k_proj", "v_proj")
        values = attention.v_proj, slice(None)
    gated = getattr(attention, "gate", None) is not None
    grouped = getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads
    divides = _dividing(attention.norm, None if grouped else values)
    return Stage(
        norm=block.norm1,
        body=_of_tokens(attention if rotation is None else partial(attention, rope=rotation)),
        first=(Read({f"{name}.{leaf}": getattr(attention, leaf) for leaf in leaves}, partial(divide, block.norm1)),),
        second=Read({f"{name}.proj": attention.proj}, None if gated else divides),
    )


def _mlp(block: Any, name: str) -> Stage:
    from timm.layers import GluMlp, SwiGLU

    mlp, values = block.mlp, None
    leaves = ("fc1_g", "fc1_x") if isinstance(mlp, SwiGLU) else ("fc1",)
    if isinstance(mlp, SwiGLU):
        values = mlp.fc1_x, slice(None)
    elif isinstance(mlp, GluMlp):
        half = mlp.fc2.in_features
        values = mlp.fc1, slice(0, half) if mlp.gate_last else slice(half, 2 * half)
    return Stage(
        norm=block.norm2,
        body=_of_tokens(mlp),
        first=(Read({f"{name}.{leaf}": getattr(mlp, leaf) for leaf in leaves}, partial(divide, block.norm2)),),
        second=Read({f"{name}.fc2": mlp.fc2}, _dividing(mlp.norm, values)),
    )


def _dividing(norm: Any, values: "tuple[nn.Linear, slice] | None") -> "Callable[[Tensor], None] | None":
    """How the second Linear's input is divided: in a norm before it, or in rows of a first Linear, if it has either."""
    from torch import nn

    if not isinstance(norm, nn.Identity):
        return partial(divide, norm)
    return None if values is None else partial(divide, values[0], rows=values[1])


def _of_tokens(part: "Callable[[Tensor], Tensor]") -> "Callable[[Tensor, Stream], Tensor]":
    return lambda normed, _: part(normed)


def _rotation(backbone: Any, index: int) -> "Tensor | None":
    """Timm's table for one block, as its `forward` takes it."""
    embedding = getattr(backbone, "rope", None)
    if embedding is None:
        return None
    table: Tensor = embedding.get_embed(shape=list(backbone.patch_embed.grid_size))
    return table[index] if backbone.rope_mixed else table
