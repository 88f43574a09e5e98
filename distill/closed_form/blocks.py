"""What both kinds of network that a fit knows compute alike: timm's ViT, and its Eva with rotary positions.

A rotary network turns pairs of query and key channels by angles that depend on the token's place; what is fitted are
queries and keys before that turn.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def embed(vit: Any, images: Tensor) -> Tensor:
    """Tokens that the first block reads, `(B, tokens, width)`."""
    found = vit._pos_embed(vit.patch_embed(images))
    tokens = found[0] if isinstance(found, tuple) else vit.patch_drop(found)
    normed: Tensor = vit.norm_pre(tokens)
    return normed


def angles(vit: Any) -> Tensor | None:
    """Sines and cosines by which a network turns queries and keys, `(patches, 2 * head size)`; None where it does not.

    They are those of its present grid of patches.
    """
    if getattr(vit, "rope", None) is None:
        return None
    table: Tensor = vit.rope.get_embed(shape=list(vit.patch_embed.grid_size))
    return table


def run_block(block: Any, tokens: Tensor, table: Tensor | None) -> Tensor:
    """What a block makes of the residual stream."""
    written: Tensor = block(tokens) if table is None else block(tokens, rope=table)
    return written


def attend(block: Any, tokens: Tensor, table: Tensor | None) -> Tensor:
    """What a block's attention adds to the residual stream."""
    attention = block.attn
    mixed = mix(queries_keys_values(attention, block.norm1(tokens)), attention, table)
    return scaled(block, 1, attention.proj(mixed))


def queries_keys_values(attention: Any, tokens: Tensor) -> Tensor:
    """`(B, tokens, 3 * heads * head size)`, nothing turned yet."""
    if getattr(attention, "q_bias", None) is None:
        found: Tensor = attention.qkv(tokens)
        return found
    return F.linear(tokens, attention.qkv.weight, torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]))


def mix(qkv: Tensor, attention: Any, table: Tensor | None) -> Tensor:
    """What a block's heads give, `(B, tokens, heads * head size)`, of its queries, keys and values."""
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if table is not None:
        q, k = (_turned(part, attention, table).type_as(v) for part in (q, k))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def _turned(heads: Tensor, attention: Any, table: Tensor) -> Tensor:
    from timm.layers import apply_rot_embed_cat

    prefix, half = attention.num_prefix_tokens, bool(attention.rotate_half)
    return torch.cat([heads[:, :, :prefix], apply_rot_embed_cat(heads[:, :, prefix:], table, half=half)], dim=2)


def scaled(block: Any, number: int, values: Tensor) -> Tensor:
    """Values times the LayerScale of attention (1) or MLP (2), where there is one."""
    gamma = layer_scale(block, number)
    return values if gamma is None else values * gamma


def layer_scale(block: Any, number: int) -> Tensor | None:
    """LayerScale of attention (1) or MLP (2)."""
    if hasattr(block, f"gamma_{number}"):
        found: Tensor | None = getattr(block, f"gamma_{number}")
    else:
        found = getattr(getattr(block, f"ls{number}"), "gamma", None)
    return found


def qkv_biases(attention: Any) -> list[Tensor | None]:
    """The biases of queries, keys and values, each a view to write to, or None where there is none."""
    if attention.qkv.bias is not None:
        return list(attention.qkv.bias.chunk(3))
    # timm's Eva has none for keys.
    return [getattr(attention, "q_bias", None), None, getattr(attention, "v_bias", None)]
