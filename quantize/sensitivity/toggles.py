"""A copy of an encoder in PyTorch whose layers can be rounded to INT8 one by one: for sensitivity, not for export."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.quantize.numerics.rounding import LEVELS, fake_round, fake_weight, grid_ends, smooth_scale
from atlas_edge.quantize.onnx.qkv_bias import join_biases
from atlas_edge.quantize.recipe import Recipe

if TYPE_CHECKING:
    import torch

Tiles = NDArray[np.uint8]

# What a layer is called that is no module: the two matrix products of attention.
SCORES, VALUES = "scores", "values"


class ToggledEncoder:
    """An encoder with a switch at every Linear, convolution and attention product.

    Weights are rounded per output channel, symmetrically; activations per tensor, after SmoothQuant of the recipe's
    first strength (arXiv:2211.10438, equation 4). Ranges are the extremes over the calibration tiles.

    Args:
        module: Full-precision encoder, `(B, H, W, 3)` uint8 -> `(B, D)` float32. Unchanged.
        calibration: `(N, H, W, 3)` uint8 tiles that set the ranges.
        recipe: Smoothing, and whether attention and the patch embedding have a switch; `exclude` is not regarded.
        symmetric: Activations symmetric around 0, as ONNX for TensorRT has them, or between their extremes, as
            OpenVINO has them.

    Attributes:
        layers: Names of the switches in the order of computation, such as `blocks.3.mlp.fc2`.
        work: Multiply-adds of each for one tile.
    """

    def __init__(
        self, module: "torch.nn.Module", calibration: Tiles, recipe: Recipe, *, symmetric: bool = True
    ) -> None:
        import torch

        self.module = join_biases(copy.deepcopy(module)).eval()
        self._symmetric = symmetric
        self._on: set[str] = set()
        self.work: dict[str, int] = {}
        self._points: dict[str, _Point] = {}
        self._weights: dict[str, tuple[Any, Any, Any]] = {}
        layers = [
            (name, layer)
            for name, layer in self.module.named_modules()
            if isinstance(layer, torch.nn.Linear) or (recipe.patch_embed and isinstance(layer, torch.nn.Conv2d))
        ]
        for name, layer in layers:
            self._watch_layer(name, layer)
        if recipe.attention:
            for name, attention in self.module.named_modules():
                if _is_attention(attention):
                    self._watch_attention(name, attention)
        self._calibrate(calibration)
        alpha = recipe.smooth_alphas[0]
        for name, layer in layers:
            self._round_weight(name, layer, alpha)
        self.layers = tuple(self.work)

    def switch(self, on: Iterable[str]) -> None:
        """Round exactly these layers."""
        self._on = set(on)
        for name, (layer, full, rounded) in self._weights.items():
            layer.weight.data = rounded if name in self._on else full

    def embed(self, tiles: Tiles) -> NDArray[np.float32]:
        """Embeddings `(N, D)` with the switches as they are."""
        import torch

        with torch.inference_mode():
            result: NDArray[np.float32] = self.module(torch.from_numpy(tiles)).float().numpy()
        return result

    def _watch_layer(self, name: str, layer: "torch.nn.Module") -> None:
        point = _Point()
        short = name.removeprefix("backbone.")
        self._points[short] = point

        def before(_: Any, inputs: tuple["torch.Tensor", ...]) -> Any:
            return (self._pass(short, point, inputs[0], per_channel=True),)

        def after(layer: Any, _: Any, output: "torch.Tensor") -> None:
            if short not in self.work:
                self.work[short] = output[0].numel() * layer.weight[0].numel()

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)

    def _watch_attention(self, name: str, attention: Any) -> None:
        import torch

        # Written out, the softmax has a place to be rounded at.
        attention.fused_attn = False
        short = name.removeprefix("backbone.")
        scores, values = f"{short}.{SCORES}", f"{short}.{VALUES}"
        points = [_Point() for _ in range(4)]
        self._points |= {f"{short}.{part}": point for part, point in zip("qkav", points, strict=True)}
        query, key, softmax, value = points

        def hook(switch: str, point: "_Point") -> Callable[..., Any]:
            return lambda _module, _inputs, output: self._pass(switch, point, output)

        def work(_module: Any, _inputs: Any, output: "torch.Tensor") -> None:
            multiply_adds = output[0].numel() * attention.head_dim
            self.work.setdefault(scores, multiply_adds)
            self.work.setdefault(values, multiply_adds)

        def last_third(_module: Any, _inputs: Any, output: "torch.Tensor") -> Any:
            width = output.shape[-1] // 3
            own = self._pass(values, value, output[..., 2 * width :])
            return torch.cat([output[..., : 2 * width], own], dim=-1)

        attention.q_norm.register_forward_hook(hook(scores, query))
        attention.k_norm.register_forward_hook(hook(scores, key))
        attention.attn_drop.register_forward_hook(work)
        attention.attn_drop.register_forward_hook(hook(values, softmax))
        attention.qkv.register_forward_hook(last_third)

    def _pass(self, switch: str, point: "_Point", x: "torch.Tensor", *, per_channel: bool = False) -> "torch.Tensor":
        if point.ends is None:
            point.see(x, per_channel=per_channel)
        elif switch in self._on:
            return point.round(x)
        return x

    def _calibrate(self, tiles: Tiles) -> None:
        for start in range(0, len(tiles), 8):
            self.embed(tiles[start : start + 8])
        for point in self._points.values():
            point.fix(symmetric=self._symmetric)

    def _round_weight(self, name: str, layer: Any, alpha: float) -> None:
        import torch

        short = name.removeprefix("backbone.")
        point, weight = self._points[short], layer.weight.detach()
        smooth = None
        if alpha >= 0 and isinstance(layer, torch.nn.Linear):
            smooth = smooth_scale(point.peaks, weight, alpha)
            point.smooth(smooth, symmetric=self._symmetric)
            weight = weight * smooth
        rounded = fake_weight(weight.flatten(1)).view_as(weight)
        self._weights[short] = (layer, layer.weight.detach(), rounded if smooth is None else rounded / smooth)


class _Point:
    """An activation: what was seen of it, and how it is rounded."""

    def __init__(self) -> None:
        self.ends: tuple[float, float] | None = None
        self.low: Any = None
        self.high: Any = None
        self._smooth: Any = None
        self._levels = LEVELS

    def see(self, x: "torch.Tensor", *, per_channel: bool) -> None:
        import torch

        flat = x.detach().reshape(-1, x.shape[-1]) if per_channel and x.dim() < 4 else x.detach().reshape(-1, 1)
        low, high = flat.amin(0), flat.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    @property
    def peaks(self) -> Any:
        """Largest absolute value of each channel."""
        import torch

        return torch.maximum(self.low.abs(), self.high.abs())

    def fix(self, *, symmetric: bool) -> None:
        low, high = float(self.low.amin()), float(self.high.amax())
        if symmetric and low < 0:
            low, high = -float(self.peaks.amax()), float(self.peaks.amax())
        self._levels = LEVELS - 1 if symmetric else LEVELS
        self.ends = grid_ends(low, high, self._levels)

    def smooth(self, scale: "torch.Tensor", *, symmetric: bool) -> None:
        """Divide channels by `scale` before rounding; the range follows."""
        self.low, self.high, self._smooth = self.low / scale, self.high / scale, scale
        self.fix(symmetric=symmetric)

    def round(self, x: "torch.Tensor") -> "torch.Tensor":
        assert self.ends is not None
        if self._smooth is None:
            return fake_round(x, *self.ends, self._levels)
        return fake_round(x / self._smooth, *self.ends, self._levels) * self._smooth


def _is_attention(module: Any) -> bool:
    parts: Sequence[str] = ("qkv", "q_norm", "k_norm", "attn_drop", "fused_attn", "head_dim")
    return all(hasattr(module, part) for part in parts)
