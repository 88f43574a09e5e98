"""Which networks can be folded."""

from typing import Any

from torch import nn

from atlas_edge.models.encoder_module import TOKEN_POOLINGS, EncoderModule
from atlas_edge.models.folding.mlp import activation_name


def unfoldable_part(module: nn.Module) -> str | None:
    """The first part of an encoder that folding does not know, as `blocks.0.mlp is a GatedMlp`; None without any."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    backbone: Any = getattr(module, "backbone", module)
    # Exact types: a subclass may pool, embed or compute in its own way.
    if type(backbone) not in (VisionTransformer, Eva):
        return f"{type(backbone).__name__} is no plain vision transformer"
    if type(backbone) is VisionTransformer and backbone.pos_embed is None:
        # Older timm leaves the class token out then.
        return "it has no position embedding"
    found = _of_embedding(backbone)
    for index, block in enumerate(backbone.blocks):
        found = found or _of_block(block, f"blocks.{index}")
    return found or _of_pooling(module, backbone)


def _of_embedding(backbone: Any) -> str | None:
    from timm.layers import PatchEmbed

    embedding = backbone.patch_embed
    if type(embedding) is not PatchEmbed:
        return f"patch_embed is a {type(embedding).__name__}"
    if not _absent(embedding.norm):
        return "patch_embed has a norm"
    if embedding.img_size is None:
        return "it takes tiles of any size"
    if any(side % patch for side, patch in zip(embedding.img_size, embedding.patch_size, strict=True)):
        return "its tiles are no multiple of its patches, and padded"
    return _of_norm("norm_pre", backbone.norm_pre, optional=True)


def _of_block(block: Any, name: str) -> str | None:
    from timm.layers import GluMlp, LayerScale, Mlp, SwiGLU
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block

    if type(block) not in (Block, EvaBlock):
        return f"{name} is a {type(block).__name__}"
    for leaf, part, known in (
        ("attn", block.attn, (Attention, AttentionRope, EvaAttention)),
        ("mlp", block.mlp, (Mlp, GluMlp, SwiGLU)),
        ("ls1", getattr(block, "ls1", None), (LayerScale, nn.Identity, type(None))),
        ("ls2", getattr(block, "ls2", None), (LayerScale, nn.Identity, type(None))),
    ):
        if type(part) not in known:
            return f"{name}.{leaf} is a {type(part).__name__}"
    attention, mlp = block.attn, block.mlp
    if getattr(attention, "gate", None) is not None:
        return f"{name}.attn has a gate"
    if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
        return f"{name}.attn has fewer keys than queries"
    if not isinstance(mlp.fc2, nn.Linear):
        return f"{name}.mlp.fc2 is a {type(mlp.fc2).__name__}"
    if activation_name(mlp.act) is None:
        return f"{name}.mlp.act is a {type(mlp.act).__name__}"
    return (
        _of_norm(f"{name}.norm1", block.norm1)
        or _of_norm(f"{name}.norm2", block.norm2)
        or _of_norm(f"{name}.attn.norm", attention.norm, optional=True)
        or _of_norm(f"{name}.mlp.norm", mlp.norm, optional=True)
        or _of_head_norm(f"{name}.attn.q_norm", attention.q_norm)
        or _of_head_norm(f"{name}.attn.k_norm", attention.k_norm)
    )


def _of_norm(name: str, norm: nn.Module, *, optional: bool = False) -> str | None:
    if isinstance(norm, nn.LayerNorm) or (optional and _absent(norm)):
        return None
    return f"{name} is a {type(norm).__name__}"


def _of_head_norm(name: str, norm: nn.Module) -> str | None:
    from timm.layers import RmsNorm, RmsNormFp32

    return None if isinstance(norm, RmsNorm | RmsNormFp32) else _of_norm(name, norm, optional=True)


def _of_pooling(module: nn.Module, backbone: Any) -> str | None:
    if not isinstance(module, EncoderModule):
        return "it is no encoder"
    if module.pooling not in TOKEN_POOLINGS:
        return "it pools in a way of its own"
    for name in ("norm", "fc_norm"):
        found = _of_norm(name, getattr(backbone, name), optional=True)
        if found is not None:
            return found
    if module.pooling != "avg" and backbone.cls_token is None:
        return "it has no class token to pool"
    return None


def _absent(part: nn.Module) -> bool:
    return isinstance(part, nn.Identity)
