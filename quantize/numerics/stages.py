"""The two stages of a transformer block, attention and MLP, as quantization block by block sees them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Stage:
    """Attention or MLP of a block.

    Attributes:
        norm: The LayerNorm that it reads.
        body: What it computes of that, before LayerScale.
        gamma: LayerScale `(D,)`, or None.
        first: Linears that read the norm.
        second: The Linear that writes to the residual stream.
        names: Of all these Linears, in this order.
        values: One of `first`, and those of its rows in which the inputs of `second` are linear; None without.
        inner_norm: A LayerNorm whose output `second` reads, or None.
    """

    norm: Any
    body: "Callable[[Tensor], Tensor]"
    gamma: "nn.Parameter | None"
    first: "tuple[nn.Linear, ...]"
    second: "nn.Linear"
    names: tuple[str, ...]
    values: "tuple[nn.Linear, slice] | None"
    inner_norm: Any


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
    """Those of every block of an encoder in which `unfittable_part` finds nothing, in the order of computation."""
    for index, block in enumerate(module.backbone.blocks):
        name = f"backbone.blocks.{index}"
        yield _attention(block, f"{name}.attn", _rotation(module.backbone, index))
        yield _mlp(block, f"{name}.mlp")


def _attention(block: Any, name: str, rotation: "Tensor | None") -> Stage:
    attention = block.attn
    body = attention if rotation is None else partial(attention, rope=rotation)
    inner = _present(attention.norm)
    if attention.qkv is not None:
        leaves: tuple[str, ...] = ("qkv",)
        width = attention.proj.in_features
        values = attention.qkv, slice(2 * width, 3 * width)
    else:
        leaves = ("q_proj", "k_proj", "v_proj")
        values = attention.v_proj, slice(None)
    gated = getattr(attention, "gate", None) is not None
    grouped = getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads
    return Stage(
        norm=block.norm1,
        body=body,
        gamma=block.gamma_1 if hasattr(block, "gamma_1") else getattr(block.ls1, "gamma", None),
        first=tuple(getattr(attention, leaf) for leaf in leaves),
        second=attention.proj,
        names=tuple(f"{name}.{leaf}" for leaf in (*leaves, "proj")),
        values=values if inner is None and not gated and not grouped else None,
        inner_norm=None if gated else inner,
    )


def _mlp(block: Any, name: str) -> Stage:
    from timm.layers import GluMlp, SwiGLU

    mlp, values = block.mlp, None
    inner = _present(mlp.norm)
    leaves = ("fc1_g", "fc1_x") if isinstance(mlp, SwiGLU) else ("fc1",)
    if isinstance(mlp, SwiGLU):
        values = mlp.fc1_x, slice(None)
    elif isinstance(mlp, GluMlp):
        half = mlp.fc2.in_features
        values = mlp.fc1, slice(0, half) if mlp.gate_last else slice(half, 2 * half)
    return Stage(
        norm=block.norm2,
        body=mlp,
        gamma=block.gamma_2 if hasattr(block, "gamma_2") else getattr(block.ls2, "gamma", None),
        first=tuple(getattr(mlp, leaf) for leaf in leaves),
        second=mlp.fc2,
        names=tuple(f"{name}.{leaf}" for leaf in (*leaves, "fc2")),
        values=values if inner is None else None,
        inner_norm=inner,
    )


def _present(norm: "nn.Module") -> "nn.Module | None":
    from torch import nn

    return None if isinstance(norm, nn.Identity) else norm


def _rotation(backbone: Any, index: int) -> "Tensor | None":
    """Timm's table for one block, as its `forward` takes it."""
    embedding = getattr(backbone, "rope", None)
    if embedding is None:
        return None
    table: Tensor = embedding.get_embed(shape=list(backbone.patch_embed.grid_size))
    return table[index] if backbone.rope_mixed else table
