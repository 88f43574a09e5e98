"""An OpenVINO graph of a folded vision transformer, INT8 where grids were chosen.

The graph is written operator by operator, because what the CPU plugin makes of it depends on how it is written:

- query, key and value are three products: the plugin then reads each head where it lies, without a split and copies;
- the patch embedding's output is brought to channels last before it is flattened: that is how the convolution wrote it;
- the grid of a Linear's input, and of query and key, follows its producer directly, so that the producer writes INT8;
- the grids of query and key are symmetric: with a zero point, the plugin takes both back to floating point before it
  multiplies them (2026.4);
- GELU is the exact one: its tanh form is slower in the plugin, with AVX-512 and much more so with AVX2;
- SmoothQuant's division after LayerNorm is a multiplication of its own. As the input range of FakeQuantize, which the
  plugin then fuses into MVN, it gives wrong results: that fusion takes the second axis for the channel (2026.4);
- attention weights stay in floating point: most are far below 1/255, the step of their grid.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.models.graph import INPUT, OUTPUT
from atlas_edge.quantize.openvino.grids import PATCH_EMBED, ActivationGrid, VitGrids, choose_grids
from atlas_edge.quantize.paths import LAYER_WISE
from atlas_edge.quantize.recipe import Recipe

if TYPE_CHECKING:
    import openvino as ov
    from torch import Tensor, nn

    from atlas_edge.models.folded_vit import FoldedBlock, FoldedVit

_Type = Literal["f32", "i64", "i8"]
_GRID_LEVELS = 256


def foldable(module: "nn.Module") -> "FoldedVit | None":
    """The folded network where this graph can express it; None otherwise (see `fold_vit`)."""
    from atlas_edge.models.folded_vit import fold_vit

    folded = fold_vit(module)
    return None if folded is None or any(block.attn.normed for block in folded.blocks) else folded


def quantize_vit(
    folded: "FoldedVit", calibration: Sequence[NDArray[np.uint8]], recipe: Recipe
) -> "tuple[ov.Model, dict[str, Any]]":
    """Quantize a folded vision transformer to INT8 for OpenVINO's CPU plugin.

    Args:
        folded: From `foldable`; changed in place (see `choose_grids`).
        calibration: Batches of tiles, `(B, tile_px, tile_px, 3)` uint8.
        recipe: What to quantize and how.

    Returns:
        The model; and recipe, coverage, strengths and errors, for the manifest.

    Raises:
        UsageError: `recipe.exclude` names a layer that the network does not have.
    """
    grids = choose_grids(folded, calibration, recipe)
    layers = {
        name: {"smooth_alpha": grids.activations[name].alpha, "clip": grids.activations[name].clip, "error": grid.error}
        for name, grid in grids.weights.items()
        if name in grids.activations
    }
    return build_openvino(folded, grids, tile_px=calibration[0].shape[1]), {
        "recipe": recipe.model_dump(mode="json"),
        "method": "layer-wise: ranges and SmoothQuant by output error, weights "
        + ("fitted by GPTQ" if recipe.weights == "fitted" else "rounded to the nearest"),
        "path": LAYER_WISE,
        "layers": layers,
        "coverage": grids.coverage(folded),
    }


def build_openvino(folded: "FoldedVit", grids: VitGrids, *, tile_px: int) -> "ov.Model":
    """Write the graph: input `tiles` `(B, tile_px, tile_px, 3)` uint8, output `embedding` `(B, D)` float32.

    Args:
        folded: From `fold_vit`, without query and key norms, as `choose_grids` left it.
        grids: From `choose_grids`; an empty one gives a graph in full precision.
        tile_px: Side of a tile.
    """
    return _Writer(grids).model(folded, tile_px)


class _Writer:
    def __init__(self, grids: VitGrids) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.grids = grids

    def model(self, folded: "FoldedVit", tile_px: int) -> "ov.Model":
        import openvino as ov

        op = self.op
        tiles = op.parameter([-1, tile_px, tile_px, 3], np.uint8, name=INPUT)
        tiles.output(0).set_names({INPUT})
        tokens = self._patches(folded, tiles)
        for index, block in enumerate(folded.blocks):
            tokens = self._block(tokens, block, f"blocks.{index}")
        if folded.pooling == "cls":
            embedding = self._layer_norm(self._first(tokens), folded.norm)
        else:
            if not folded.norm_after_pooling:
                tokens = self._layer_norm(tokens, folded.norm)
            patches = self._slice(tokens, folded.prefix_tokens, np.iinfo(np.int64).max)
            mean = op.reduce_mean(patches, self._constant([1], "i64"), keep_dims=True)
            parts = [self._first(tokens), mean] if folded.pooling == "cls+mean" else [mean]
            if folded.norm_after_pooling:
                parts = [self._layer_norm(part, folded.norm) for part in parts]
            embedding = op.concat(parts, 2) if len(parts) > 1 else parts[0]
        result = op.result(op.squeeze(embedding, self._constant([1], "i64")), name=OUTPUT)
        result.output(0).set_names({OUTPUT})
        return ov.Model([result], [tiles], "encoder")

    def _patches(self, folded: "FoldedVit", tiles: Any) -> Any:
        op, convolution = self.op, folded.patch_embed.proj
        pixels = op.transpose(op.convert(tiles, np.float32), self._constant([0, 3, 1, 2], "i64"))
        positions = _numpy(folded.positions)
        if PATCH_EMBED in self.grids.weights:
            # The pixels are their own grid.
            pixels = self._on_grid(pixels, ActivationGrid(low=0.0, high=255.0))
            positions = positions + self.grids.weights[PATCH_EMBED].bias
        weight = self._weight(PATCH_EMBED, convolution.weight)
        patches = op.convolution(pixels, weight, list(convolution.stride), [0, 0], [0, 0], [1, 1])
        channels_last = op.transpose(patches, self._constant([0, 2, 3, 1], "i64"))
        flat = op.reshape(channels_last, self._constant([0, -1, positions.shape[-1]], "i64"), special_zero=True)
        tokens = op.add(flat, self._constant(positions))
        if not folded.prefix.shape[1]:
            return tokens
        batch = op.gather(op.shape_of(tiles), self._constant([0], "i64"), self._constant(0, "i64"))
        shape = op.concat([batch, self._constant(folded.prefix.shape[1:], "i64")], 0)
        return op.concat([op.broadcast(self._constant(_numpy(folded.prefix)), shape), tokens], 1)

    def _block(self, tokens: Any, block: "FoldedBlock", name: str) -> Any:
        op = self.op
        normed = self._standardise(tokens, block.eps1)
        queried, tokens = (self._first(normed), self._first(tokens)) if block.cls_only else (normed, tokens)
        attended = self._attention(queried, normed, block, f"{name}.attn")
        tokens = op.add(tokens, self._linear(attended, f"{name}.attn.proj", block.attn.proj))
        hidden = self._linear(self._standardise(tokens, block.eps2), f"{name}.mlp.fc1", block.mlp.fc1)
        hidden = op.gelu(hidden, "ERF")
        return op.add(tokens, self._linear(hidden, f"{name}.mlp.fc2", block.mlp.fc2))

    def _attention(self, queried: Any, tokens: Any, block: "FoldedBlock", name: str) -> Any:
        op, attention = self.op, block.attn

        def heads(leaf: str, source: Any, grid: ActivationGrid | None) -> Any:
            product = self._linear(source, f"{name}.{leaf}", getattr(attention, leaf))
            if grid is not None:
                product = self._on_grid(product, grid)
            shape = self._constant([0, 0, attention.num_heads, attention.head_dim], "i64")
            return op.transpose(op.reshape(product, shape, special_zero=True), self._constant([0, 2, 1, 3], "i64"))

        grids = self.grids.activations
        query = heads("q", queried, grids.get(f"{name}.query"))
        key, value = heads("k", tokens, grids.get(f"{name}.key")), heads("v", tokens, None)
        scores = op.matmul(query, key, False, True)
        scores.set_friendly_name(f"{name}.scores")
        attended = op.matmul(op.softmax(scores, 3), value, False, False)
        width = attention.num_heads * attention.head_dim
        merged = op.transpose(attended, self._constant([0, 2, 1, 3], "i64"))
        return op.reshape(merged, self._constant([0, 0, width], "i64"), special_zero=True)

    def _linear(self, tokens: Any, name: str, layer: "nn.Linear") -> Any:
        op = self.op
        if name in self.grids.weights:
            grid = self.grids.activations[name]
            if grid.scale is not None:
                tokens = op.multiply(tokens, self._constant(1 / grid.scale))
            tokens = self._on_grid(tokens, grid)
            bias = self.grids.weights[name].bias
        else:
            bias = _numpy(layer.bias)
        product = op.matmul(tokens, self._weight(name, layer.weight), False, True)
        product.set_friendly_name(name)
        return op.add(product, self._constant(bias.reshape(1, 1, -1)))

    def _weight(self, name: str, weight: "Tensor") -> Any:
        if name not in self.grids.weights:
            return self._constant(_numpy(weight))
        grid = self.grids.weights[name]
        values = self.op.convert(self._constant(grid.values, "i8"), np.float32)
        return self.op.multiply(values, self._constant(grid.step.reshape(-1, *[1] * (grid.values.ndim - 1))))

    def _on_grid(self, tensor: Any, grid: ActivationGrid) -> Any:
        low, high = self._constant(grid.low), self._constant(grid.high)
        return self.op.fake_quantize(tensor, low, high, low, high, _GRID_LEVELS)

    def _standardise(self, tokens: Any, eps: float) -> Any:
        return self.op.mvn(tokens, self._constant([2], "i64"), True, eps, "inside_sqrt")

    def _layer_norm(self, tokens: Any, norm: "nn.LayerNorm") -> Any:
        scaled = self.op.multiply(self._standardise(tokens, norm.eps), self._constant(_numpy(norm.weight)))
        return self.op.add(scaled, self._constant(_numpy(norm.bias)))

    def _first(self, tokens: Any) -> Any:
        return self._slice(tokens, 0, 1)

    def _slice(self, tokens: Any, start: int, stop: int) -> Any:
        ends = (self._constant([value], "i64") for value in (start, stop, 1, 1))
        return self.op.slice(tokens, *ends)

    def _constant(self, value: Any, kind: _Type = "f32") -> Any:
        types = {"f32": np.float32, "i64": np.int64, "i8": np.int8}
        return self.op.constant(np.asarray(value, dtype=types[kind]))


def _numpy(tensor: "Tensor") -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array
