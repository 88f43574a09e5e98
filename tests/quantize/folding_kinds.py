"""Small encoders of every kind that folding knows, with random weights that are far from their beginnings."""

from typing import Any

import torch
from timm.layers import GluMlp, RmsNorm, SwiGLUPacked

from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.spec import EncoderSpec, Pooling

VIT = "vit_tiny_patch16_224"
# Parts that DINOv2 lacks, each at least once: timm architecture and arguments, pooling.
KINDS: dict[str, tuple[str, dict[str, Any], Pooling]] = {
    "pre-norm": (VIT, {"pre_norm": True, "reg_tokens": 8, "dynamic_img_size": True}, "cls+mean"),
    "averaged": (VIT, {"class_token": False, "global_pool": "avg"}, "avg"),
    "normed after pooling": (VIT, {"global_pool": "avg", "pool_include_prefix": True}, "avg"),
    "gated": (VIT, {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "reg_tokens": 4}, "cls+mean"),
    "gate last": (VIT, {"mlp_layer": GluMlp, "act_layer": "quick_gelu"}, "cls"),
    "normed": (VIT, {"qk_norm": True}, "avg"),
    "turned, normed by mean square": ("vit_small_patch16_dinov3", {}, "cls+mean"),
    "turned": ("vit_small_patch16_dinov3_qkvb", {}, "avg"),
    "turned by head": ("vit_small_patch16_rope_mixed_224", {}, "cls"),
    "turned, gated, normed within": ("eva02_base_patch16_clip_224", {}, "cls"),
}


def encoder_of(kind: str) -> tuple[EncoderModule, EncoderSpec]:
    """An encoder of 32 px and 16 patches, and what is said of it."""
    import timm

    architecture, options, pooling = KINDS[kind]
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}
    torch.manual_seed(0)
    backbone = timm.create_model(architecture, **(settings | options))
    for parameter in backbone.parameters():
        parameter.data += (0.1 if parameter.dim() == 2 else 0.3) * torch.randn_like(parameter)
    if kind == "turned, normed by mean square":
        for block in backbone.blocks:
            for name in ("q_norm", "k_norm"):
                setattr(block.attn, name, RmsNorm(32))
    half, width = (0.5, 0.5, 0.5), 128 if pooling == "cls+mean" else 64
    spec = EncoderSpec(
        name=kind, architecture=architecture, embed_dim=width, tile_px=32, mean=half, std=half, pooling=pooling
    )
    return EncoderModule(backbone, spec).eval(), spec
