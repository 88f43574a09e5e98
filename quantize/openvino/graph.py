"""An OpenVINO graph of a folded vision transformer, INT8 where grids were chosen.

The graph is written operator by operator, because what the CPU plugin makes of it depends on how it is written:

- query, key and value are three products: the plugin then reads each head where it lies, without a split and copies;
- gate and value of a gated MLP are two: the gate's takes its activation in, and gate times value is one operator with
  the grid of what reads it;
- a rotation is written as the plugin's RoPE fusion looks for it, which takes the way from tokens to heads in as well;
- heads are normalised on three axes, for which the plugin has kernels (MVN, RMS); on four it takes them apart;
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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.models.folding.merging import with_merging
from atlas_edge.quantize.numerics.ranges import ActivationGrid
from atlas_edge.quantize.openvino.grids import PATCH_EMBED, VitGrids, choose_grids
from atlas_edge.quantize.openvino.merging import MergeOperators, WrittenStream
from atlas_edge.quantize.openvino.operators import to_numpy
from atlas_edge.quantize.paths import LAYER_WISE
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.spec import INPUT, OUTPUT, TOKENS

if TYPE_CHECKING:
    import openvino as ov

    from atlas_edge.models.folding.attention import FoldedAttention, HeadNorm
    from atlas_edge.models.folding.block import FoldedBlock
    from atlas_edge.models.folding.mlp import FoldedMlp
    from atlas_edge.models.folding.rotation import Rotation
    from atlas_edge.models.folding.vit import FoldedVit

_END = np.iinfo(np.int64).max


def quantize_vit(
    folded: "FoldedVit", calibration: Sequence[NDArray[np.uint8]], recipe: Recipe
) -> "tuple[ov.Model, dict[str, Any]]":
    """Quantize a folded vision transformer to INT8 for OpenVINO's CPU plugin.

    Args:
        folded: From `fold_vit`; changed in place (see `choose_grids`).
        calibration: Batches of tiles, `(B, tile_px, tile_px, 3)` uint8.
        recipe: What to quantize and how.

    Returns:
        The model; and recipe, coverage, strengths and errors, for the manifest.

    Raises:
        UsageError: `recipe.exclude` names a layer that the network does not have.
    """
    with_merging(folded, recipe.merge_tokens)
    grids = choose_grids(folded, calibration, recipe)
    layers = {
        name: {"smooth_alpha": grids.activations[name].alpha, "clip": grids.activations[name].clip, "error": grid.error}
        for name, grid in grids.weights.items()
        if name in grids.activations
    }
    for name in grids.weights.keys() & layers.keys():
        # Its integers stand for it from here on.
        folded.get_submodule(name).weight = None
    return build_openvino(folded, grids, tile_px=calibration[0].shape[1]), {
        "recipe": recipe.model_dump(mode="json"),
        "method": "layer-wise: ranges and SmoothQuant by output error, weights "
        + ("fitted by GPTQ" if recipe.weights == "fitted" else "rounded to the nearest"),
        "path": LAYER_WISE,
        "layers": layers,
        "coverage": grids.coverage(folded),
        **(
            {}
            if recipe.merge_tokens == 1
            else {"merged": {f"blocks.{i}": b.merged for i, b in enumerate(folded.blocks) if b.merged}}
        ),
    }


def build_openvino(folded: "FoldedVit", grids: VitGrids, *, tile_px: int) -> "ov.Model":
    """Write the graph: input `tiles` `(B, tile_px, tile_px, 3)` uint8, output `embedding` `(B, D)` float32.

    A network that `gives_tokens` has a second output, `tokens` `(B, N, C)` float32.

    Args:
        folded: From `fold_vit`, as `choose_grids` left it.
        grids: From `choose_grids`; an empty one gives a graph in full precision.
        tile_px: Side of a tile.
    """
    return _Writer(grids).model(folded, tile_px)


class _Writer(MergeOperators):
    def __init__(self, grids: VitGrids) -> None:
        super().__init__(grids)
        self._tables: dict[int, tuple[Any, Any]] = {}

    def model(self, folded: "FoldedVit", tile_px: int) -> "ov.Model":
        import openvino as ov

        op = self.op
        tiles = op.parameter([-1, tile_px, tile_px, 3], np.uint8, name=INPUT)
        tiles.output(0).set_names({INPUT})
        stream = WrittenStream(self._patches(folded, tiles), folded.prefix.shape[1] + folded.token_count)
        for index, block in enumerate(folded.blocks):
            stream = self._block(stream, block, f"blocks.{index}")
        if folded.pooling == "cls" and not folded.gives_tokens:
            stream = self.first_of(stream)
        stream = self.with_tokens(stream, self.layer_norm(stream.tokens, folded.norm))
        parts = [] if folded.pooling == "avg" else [self.first(stream.tokens)]
        if folded.pooling != "cls":
            parts.append(self.mean(stream, folded.pooled_from))
        parts = [self.layer_norm(part, folded.fc_norm) for part in parts]
        embedding = op.concat(parts, 2) if len(parts) > 1 else parts[0]
        outputs = {OUTPUT: op.squeeze(embedding, self.constant([1], "i64"))}
        if folded.gives_tokens:
            outputs[TOKENS] = self.slice(stream.tokens, folded.prefix.shape[1], _END)
        results = []
        for name, output in outputs.items():
            results.append(op.result(output, name=name))
            results[-1].output(0).set_names({name})
        return ov.Model(results, [tiles], "encoder")

    def _patches(self, folded: "FoldedVit", tiles: Any) -> Any:
        op, convolution = self.op, folded.patch_embed.proj
        pixels = self.transpose(op.convert(tiles, np.float32), [0, 3, 1, 2])
        positions = to_numpy(folded.positions)
        if PATCH_EMBED in self.grids.weights:
            # The pixels are their own grid.
            pixels = self.on_grid(pixels, ActivationGrid(low=0.0, high=255.0))
            positions = positions + self.grids.weights[PATCH_EMBED].bias
        weight = self.weight(PATCH_EMBED, convolution.weight)
        patches = op.convolution(pixels, weight, list(convolution.stride), [0, 0], [0, 0], [1, 1])
        flat = self.reshape(self.transpose(patches, [0, 2, 3, 1]), [0, -1, positions.shape[-1]])
        tokens = self.layer_norm(op.add(flat, self.constant(positions)), folded.norm_pre)
        if folded.order is not None:
            tokens = op.gather(tokens, self.constant(folded.order.numpy(), "i64"), self.constant(1, "i64"))
        if not folded.prefix.shape[1]:
            return tokens
        batch = op.gather(op.shape_of(tiles), self.constant([0], "i64"), self.constant(0, "i64"))
        shape = op.concat([batch, self.constant(folded.prefix.shape[1:], "i64")], 0)
        return op.concat([op.broadcast(self.constant(to_numpy(folded.prefix)), shape), tokens], 1)

    def _block(self, stream: WrittenStream, block: "FoldedBlock", name: str) -> WrittenStream:
        op = self.op
        normed = self.standardise(stream.tokens, block.eps1)
        attended, of_cls = self._attention(normed, stream, block, f"{name}.attn")
        if block.cls_only:
            stream = self.first_of(stream)
        tokens = op.add(stream.tokens, self.linear(attended, f"{name}.attn.proj", block.attn.proj))
        stream = self.with_tokens(stream, tokens)
        if block.merged:
            placed = block.attn.rotation is not None
            stream = self.merged(stream, of_cls, block.merged, block.prefix, placed=placed)
        hidden = self._hidden(self.standardise(stream.tokens, block.eps2), block.mlp, f"{name}.mlp")
        return self.with_tokens(stream, op.add(stream.tokens, self.linear(hidden, f"{name}.mlp.fc2", block.mlp.fc2)))

    def _attention(self, tokens: Any, stream: WrittenStream, block: "FoldedBlock", name: str) -> tuple[Any, Any]:
        """What the projection reads, and what CLS looks at where tokens are merged; `tokens` are the standardised."""
        op, attention = self.op, block.attn
        queried = self.first(tokens) if block.cls_only else tokens
        # CLS, the first token, is not turned.
        query = self._heads(queried, attention, name, "q", None if block.cls_only else attention.rotation, stream)
        key = self._heads(tokens, attention, name, "k", attention.rotation, stream)
        value = self._heads(tokens, attention, name, "v", None, stream)
        of_cls = self.of_cls(query, key, stream) if block.merged and block.asks_cls else None
        scores = op.matmul(query, key, False, True)
        scores.set_friendly_name(f"{name}.scores")
        attended = op.matmul(op.softmax(self.with_sizes(scores, stream), 3), value, False, False)
        width = attention.num_heads * attention.head_dim
        merged = self.reshape(self.transpose(attended, [0, 2, 1, 3]), [0, 0, width])
        return self.standardise(merged, attention.inner_eps), of_cls

    def _heads(
        self,
        tokens: Any,
        attention: "FoldedAttention",
        name: str,
        leaf: str,
        rotation: "Rotation | None",
        stream: WrittenStream,
    ) -> Any:
        """Query, key or value of every head, `(B, heads, N, head_dim)`."""
        heads = self.linear(tokens, f"{name}.{leaf}", getattr(attention, leaf))
        norm = {"q": attention.q_norm, "k": attention.k_norm}.get(leaf)
        grid = self.grids.activations.get({"q": f"{name}.query", "k": f"{name}.key"}.get(leaf, ""))
        shape = [attention.num_heads, attention.head_dim]
        if norm is not None:
            heads = self._head_norm(heads, shape, norm)
        if rotation is None:
            return self.transpose(self.reshape(self.on_grid(heads, grid), [0, 0, *shape]), [0, 2, 1, 3])
        heads = self.transpose(self.reshape(heads, [0, 0, *shape]), [0, 2, 1, 3])
        return self.on_grid(self._turned(heads, rotation, stream), grid)

    def _head_norm(self, tokens: Any, shape: list[int], norm: "HeadNorm") -> Any:
        """Every head of `(B, N, heads * head_dim)` normalised."""
        op = self.op
        heads = self.reshape(tokens, [0, -1, shape[1]])
        if norm.centred:
            heads = self.standardise(heads, norm.eps)
        else:
            power = op.reduce_mean(op.power(heads, self.constant(2.0)), self.constant([2], "i64"), True)
            heads = op.divide(heads, op.sqrt(op.add(power, self.constant(norm.eps))))
        tokens = self.reshape(heads, [0, -1, shape[0] * shape[1]])
        tokens = op.multiply(tokens, self.constant(to_numpy(norm.weight).ravel()))
        return op.add(tokens, self.constant(to_numpy(norm.bias).ravel())) if norm.bias.any() else tokens

    def _turned(self, heads: Any, rotation: "Rotation", stream: WrittenStream) -> Any:
        """Halves, a product with -1, two with tables of four axes: all in the form that RoPE fusion knows."""
        op = self.op
        if id(rotation) not in self._tables:
            cos, sin = (self.constant(to_numpy(table)[None]) for table in (rotation.cos, rotation.sin))
            self._tables[id(rotation)] = cos, sin
        cos, sin = (self.at_places(table, stream) for table in self._tables[id(rotation)])
        half = self.constant([rotation.cos.shape[-1] // 2] * 2, "i64")
        first, second = op.variadic_split(heads, self.constant(3, "i64"), half).outputs()
        turned = op.concat([op.multiply(second, self.constant(-1.0)), first], -1)
        return op.add(op.multiply(heads, cos), op.multiply(turned, sin))

    def _hidden(self, normed: Any, mlp: "FoldedMlp", name: str) -> Any:
        """What `fc2` reads, `(B, N, H)`."""
        first, *others = (self.linear(normed, f"{name}.{leaf}", getattr(mlp, leaf)) for leaf in mlp.first)
        hidden = self._activated(first, mlp.activation)
        for value in others:
            hidden = self.op.multiply(hidden, value)
        return self.standardise(hidden, mlp.inner_eps)

    def _activated(self, hidden: Any, name: str) -> Any:
        op = self.op
        if name == "gelu":
            return op.gelu(hidden, "ERF")
        if name == "gelu_tanh":
            return op.gelu(hidden, "TANH")
        if name == "quick_gelu":
            return op.swish(hidden, self.constant(1.702))
        return {"relu": op.relu, "sigmoid": op.sigmoid, "silu": op.swish}[name](hidden)
