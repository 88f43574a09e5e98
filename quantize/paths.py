"""Which way a network was quantized, and why not the better one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LAYER_WISE = "layer by layer"
NNCF = "through NNCF"
FITTED = "with ModelOpt, block by block"
NEAREST = "with ModelOpt, to the nearest"
TRAINED = "in the ranges that the model was trained with"
_BETTER = {
    NNCF: "not layer by layer, which is faster and closer (docs/quantization.md)",
    NEAREST: "not block by block, which is closer",
}


def unknown_part(module: "nn.Module") -> str:
    """The first part of an encoder that `numerics.blocks.fit_blocks` does not know, as `blocks.0.mlp is a GluMlp`."""
    from timm.layers import Mlp
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer
    from torch import nn

    backbone: Any = getattr(module, "backbone", module)
    if type(backbone) is not VisionTransformer:
        return f"{type(backbone).__name__} is no plain vision transformer"
    for index, block in enumerate(backbone.blocks):
        name = f"blocks.{index}"
        if type(block) is not Block:
            return f"{name} is a {type(block).__name__}"
        for leaf, part, plain in (("attn", block.attn, Attention), ("mlp", block.mlp, Mlp)):
            if type(part) is not plain:
                return f"{name}.{leaf} is a {type(part).__name__}"
        for leaf in ("q_norm", "norm"):
            if not isinstance(getattr(block.attn, leaf), nn.Identity):
                return f"{name}.attn has a {leaf}"
    return "it has a part that plain vision transformers lack"


def path_sentence(quantization: dict[str, Any] | None) -> str | None:
    """One line on the way that was taken, from what goes into the manifest; None where nothing was quantized."""
    path = (quantization or {}).get("path")
    if path is None:
        return None
    assert quantization is not None
    reason = quantization.get("path_reason")
    why = "" if reason is None else f" ({_BETTER[path]}: {reason})"
    return f"quantized {path}{why}, recipe {quantization['recipe']['name']}"
