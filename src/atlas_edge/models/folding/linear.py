"""What is folded into a product, the norm before it and the scale after it, and what is left of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def after_norm(weight: Tensor, bias: Tensor | None, norm: nn.LayerNorm) -> nn.Linear:
    """The product that reads the bare normalised tokens: `W diag(g)`, `b + W beta`."""
    weight = weight.detach()
    gain, shift = norm_parameters(norm, weight.shape[1])
    return linear(weight * gain, bias_of(weight, bias) + weight @ shift)


def standardise(tokens: Tensor, eps: float | None) -> Tensor:
    """What is left of a LayerNorm when its weight and bias are folded; the tokens themselves where `eps` is None."""
    return tokens if eps is None else functional.layer_norm(tokens, tokens.shape[-1:], eps=eps)


def scaled(layer: nn.Linear, gamma: Tensor | None) -> nn.Linear:
    """The product with a scale of its outputs, `(O,)`, inside."""
    weight, bias = layer.weight.detach(), bias_of(layer.weight, layer.bias)
    return linear(weight.clone(), bias.clone()) if gamma is None else linear(weight * gamma[:, None], bias * gamma)


def with_affine(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The same norm, with weight and bias also where timm's has none."""
    width = norm.normalized_shape[0]
    whole = nn.LayerNorm(width, eps=norm.eps)
    gain, shift = norm_parameters(norm, width)
    whole.weight.data, whole.bias.data = gain.clone(), shift.clone()
    return whole


def norm_parameters(norm: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """Weight and bias `(width,)` of a norm; ones and zeros where it has none."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return (
        torch.ones(width) if weight is None else weight.detach(),
        torch.zeros(width) if bias is None else bias.detach(),
    )


def bias_of(weight: Tensor, bias: Tensor | None) -> Tensor:
    """`(O,)`, zeros where there is none."""
    return torch.zeros(len(weight)) if bias is None else bias.detach()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of these, not of copies."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
