"""The operators that a graph for OpenVINO is written of, and where they take INT8."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.quantize.numerics.ranges import ActivationGrid
from atlas_edge.quantize.openvino.grids import VitGrids

if TYPE_CHECKING:
    from torch import Tensor, nn

_Type = Literal["f32", "i64", "i8"]
_GRID_LEVELS = 256


class Operators:
    """Writes operators; a layer or tensor that has a grid in `grids` is written in INT8."""

    def __init__(self, grids: VitGrids) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.grids = grids

    def linear(self, tokens: Any, name: str, layer: "nn.Linear") -> Any:
        """`(B, N, C)` -> `(B, N, O)`."""
        op = self.op
        if name in self.grids.weights:
            grid = self.grids.activations[name]
            if grid.scale is not None:
                tokens = op.multiply(tokens, self.constant(1 / grid.scale))
            tokens = self.on_grid(tokens, grid)
            bias = self.grids.weights[name].bias
        else:
            bias = to_numpy(layer.bias)
        product = op.matmul(tokens, self.weight(name, layer.weight), False, True)
        product.set_friendly_name(name)
        return op.add(product, self.constant(bias.reshape(1, 1, -1)))

    def weight(self, name: str, weight: "Tensor") -> Any:
        """What is stored of a layer's weight, as floating point."""
        # Not copied: a second time, the weights of a large network would not fit into the memory.
        if name not in self.grids.weights:
            return self.op.constant(np.ascontiguousarray(to_numpy(weight)), shared_memory=True)
        grid = self.grids.weights[name]
        values = self.op.convert(self.op.constant(np.ascontiguousarray(grid.values), shared_memory=True), np.float32)
        return self.op.multiply(values, self.constant(grid.step.reshape(-1, *[1] * (grid.values.ndim - 1))))

    def on_grid(self, tensor: Any, grid: ActivationGrid | None) -> Any:
        """The nearest values of the grid; the tensor itself without one."""
        if grid is None:
            return tensor
        if grid.limit is not None:
            tensor = self.op.clamp(tensor, -grid.limit, grid.limit)
        low, high = self.constant(grid.low), self.constant(grid.high)
        return self.op.fake_quantize(tensor, low, high, low, high, _GRID_LEVELS)

    def standardise(self, tokens: Any, eps: float | None) -> Any:
        """LayerNorm of `(B, N, C)` without weight and bias; the tokens themselves where `eps` is None."""
        if eps is None:
            return tokens
        return self.op.mvn(tokens, self.constant([2], "i64"), True, eps, "inside_sqrt")

    def layer_norm(self, tokens: Any, norm: "nn.LayerNorm | None") -> Any:
        """`(B, N, C)`; the tokens themselves without a norm."""
        if norm is None:
            return tokens
        scaled = self.op.multiply(self.standardise(tokens, norm.eps), self.constant(to_numpy(norm.weight)))
        return self.op.add(scaled, self.constant(to_numpy(norm.bias)))

    def reshape(self, tensor: Any, shape: list[int]) -> Any:
        """0 keeps an axis, -1 takes what is left."""
        return self.op.reshape(tensor, self.constant(shape, "i64"), special_zero=True)

    def transpose(self, tensor: Any, order: list[int]) -> Any:
        """Axes in another order."""
        return self.op.transpose(tensor, self.constant(order, "i64"))

    def first(self, tokens: Any) -> Any:
        """`(B, 1, C)`."""
        return self.slice(tokens, 0, 1)

    def slice(self, tokens: Any, start: int, stop: int, step: int = 1) -> Any:
        """Some of `(B, N, …)` tokens."""
        ends = (self.constant([value], "i64") for value in (start, stop, step, 1))
        return self.op.slice(tokens, *ends)

    def constant(self, value: Any, kind: _Type = "f32") -> Any:
        """An array or a number."""
        types = {"f32": np.float32, "i64": np.int64, "i8": np.int8}
        return self.op.constant(np.asarray(value, dtype=types[kind]))


def to_numpy(tensor: "Tensor") -> NDArray[np.float32]:
    """The same values, not copied."""
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array
