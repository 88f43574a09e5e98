"""Query, key and value biases that timm keeps beside the layer: put into it, so that the layer is called.

`timm` computes `F.linear(x, self.qkv.weight, cat(q_bias, k_bias, v_bias))` in BEiT, EVA-02, DINOv3 with biases and Swin
V2. Nothing that hooks or replaces the layer sees its input then.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_PARTS = ("q_bias", "k_bias", "v_bias")


def separate_biases(module: "nn.Module") -> list[str]:
    """Names of the layers whose biases are kept beside them, such as `backbone.blocks.0.attn.qkv`."""
    return [f"{name}.qkv" for name, attention in module.named_modules() if _is_apart(attention)]


def join_biases(module: "nn.Module") -> "nn.Module":
    """Give every such layer its bias; the network, changed in place, computes what it did.

    Args:
        module: A copy that may be changed.

    Returns:
        The same module.
    """
    import torch

    for name in separate_biases(module):
        attention: Any = module.get_submodule(name.removesuffix(".qkv"))
        parts = [getattr(attention, part).detach() for part in _PARTS]
        attention.qkv.bias = torch.nn.Parameter(torch.cat(parts))
        attention.q_bias = None
    return module


def _is_apart(attention: Any) -> bool:
    import torch

    layer = getattr(attention, "qkv", None)
    has_parts = all(isinstance(getattr(attention, part, None), torch.Tensor) for part in _PARTS)
    return isinstance(layer, torch.nn.Linear) and layer.bias is None and has_parts
