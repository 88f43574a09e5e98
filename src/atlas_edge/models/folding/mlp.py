"""The MLP of a folded block, plain or gated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_edge.models.folding.linear import after_norm, bias_of, scaled, standardise

# By the name that graphs are written from.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda hidden: functional.gelu(hidden, approximate="tanh"),
    "quick_gelu": lambda hidden: hidden * torch.sigmoid(1.702 * hidden),
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
}


class FoldedMlp(nn.Module):
    """`fc2(activation(fc1(x)))` of bare normalised tokens; LayerScale inside `fc2`."""

    def __init__(self, mlp: Any, norm: nn.LayerNorm, gamma: Tensor | None) -> None:
        super().__init__()
        name = activation_name(mlp.act)
        assert name is not None
        self.activation = name
        self._take_first(mlp, norm)
        # EVA-02 standardises what `fc2` reads.
        self.inner_eps: float | None = None if isinstance(mlp.norm, nn.Identity) else mlp.norm.eps
        second = mlp.fc2 if self.inner_eps is None else after_norm(mlp.fc2.weight, mlp.fc2.bias, mlp.norm)
        self.fc2 = scaled(second, gamma)

    @property
    def first(self) -> tuple[str, ...]:
        """Names of the products that read the normalised tokens."""
        return ("fc1",)

    @property
    def linear_in(self) -> str | None:
        """The product whose rows scale what `fc2` reads; None where an activation or a norm stands between."""
        return None

    def forward(self, normed: Tensor) -> Tensor:
        """`(B, N, D)` -> `(B, N, D)`."""
        mixed: Tensor = self.fc2(standardise(self._hidden(normed), self.inner_eps))
        return mixed

    def _hidden(self, normed: Tensor) -> Tensor:
        """`(B, N, D)` -> `(B, N, H)`: after the activation, before the norm that some have there."""
        return ACTIVATIONS[self.activation](self.fc1(normed))

    def _take_first(self, mlp: Any, norm: nn.LayerNorm) -> None:
        self.fc1 = after_norm(mlp.fc1.weight, mlp.fc1.bias, norm)


class FoldedGatedMlp(FoldedMlp):
    """`fc2(activation(fc1_g(x)) * fc1_x(x))`: gate and value are two products, as in timm's `SwiGLU`."""

    @property
    def first(self) -> tuple[str, ...]:
        """The gate, then the value."""
        return ("fc1_g", "fc1_x")

    @property
    def linear_in(self) -> str | None:
        """The value, unless a norm stands between."""
        return "fc1_x" if self.inner_eps is None else None

    def _hidden(self, normed: Tensor) -> Tensor:
        gated: Tensor = ACTIVATIONS[self.activation](self.fc1_g(normed)) * self.fc1_x(normed)
        return gated

    def _take_first(self, mlp: Any, norm: nn.LayerNorm) -> None:
        if hasattr(mlp, "fc1_g"):
            halves = [(layer.weight, layer.bias) for layer in (mlp.fc1_g, mlp.fc1_x)]
        else:
            bias = bias_of(mlp.fc1.weight, mlp.fc1.bias)
            halves = list(zip(mlp.fc1.weight.chunk(2), bias.chunk(2), strict=True))
            if mlp.gate_last:
                halves.reverse()
        self.fc1_g, self.fc1_x = (after_norm(weight, bias, norm) for weight, bias in halves)


def fold_mlp(mlp: Any, norm: nn.LayerNorm, gamma: Tensor | None) -> FoldedMlp:
    """Fold one of timm's `Mlp`, `GluMlp` (`SwiGLUPacked`) and `SwiGLU` with the norm before it and a LayerScale.

    Args:
        mlp: Without what `known.unfoldable_part` names.
        norm: The LayerNorm that it reads.
        gamma: `(D,)` that its output is multiplied by, or None.
    """
    from timm.layers import Mlp

    return (FoldedMlp if type(mlp) is Mlp else FoldedGatedMlp)(mlp, norm, gamma)


def activation_name(activation: nn.Module) -> str | None:
    """Its name in `ACTIVATIONS`; None for one that is not there."""
    from timm.layers import activations as timms

    if type(activation) is nn.GELU:
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    known: dict[type[nn.Module], str] = {
        nn.ReLU: "relu",
        nn.Sigmoid: "sigmoid",
        nn.SiLU: "silu",
        timms.GELU: "gelu",
        timms.GELUTanh: "gelu_tanh",
        timms.QuickGELU: "quick_gelu",
        timms.Sigmoid: "sigmoid",
        timms.Swish: "silu",
    }
    return known.get(type(activation))
