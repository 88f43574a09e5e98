"""The ONNX graph of a folded vision transformer, written operator by operator.

It takes a moment where tracing the network takes a quarter of a minute, and computes less: see this room's `__init__`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atlas_edge.models.folding.attention import FoldedAttention, HeadNorm
    from atlas_edge.models.folding.block import FoldedBlock
    from atlas_edge.models.folding.mlp import FoldedMlp
    from atlas_edge.models.folding.rotation import Rotation
    from atlas_edge.models.folding.vit import FoldedVit

# The first version of the file format that has the operators of opset 20 and FP8.
_IR_VERSION = 10
_END = np.iinfo(np.int64).max


def folded_graph(
    folded: "FoldedVit",
    blocks: "Iterable[FoldedBlock] | None" = None,
    *,
    tile_px: int,
    batch: int | None,
    names: tuple[str, str, str],
    opset: int,
    keep: Callable[[onnx.TensorProto], None] | None = None,
) -> onnx.ModelProto:
    """Write the graph of `FoldedVit.forward`.

    Nodes are called by their module in timm's network, as `backbone.blocks.3.mlp.fc2/MatMul_71`.

    Args:
        folded: From `fold_vit` or `fold_in_pieces`.
        blocks: From `fold_in_pieces`; those of `folded` when None.
        tile_px: Side of a tile.
        batch: Fixed batch size; None leaves it dynamic.
        names: Of the input, `(B, tile_px, tile_px, 3)` uint8, of the output, `(B, D)` float32, and of that with patch
            tokens, `(B, N, C)` float32, which a network has that `gives_tokens`.
        opset: 20 or later.
        keep: Is given each weight, and may store its values elsewhere, before the graph takes it.
    """
    return _Writer(opset, keep).model(folded, folded.blocks if blocks is None else blocks, tile_px, batch, names)


class _Writer:
    def __init__(self, opset: int, keep: Callable[[onnx.TensorProto], None] | None) -> None:
        graph = helper.make_graph([], "encoder", [], [])
        self.result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        self.result.ir_version = _IR_VERSION
        self.nodes: list[onnx.NodeProto] = []
        self.weights: set[str] = set()
        self.keep = keep
        self.module = "backbone"
        self.width = 0
        self._tables: dict[int, tuple[str, str]] = {}

    def model(
        self,
        folded: "FoldedVit",
        blocks: "Iterable[FoldedBlock]",
        tile_px: int,
        batch: int | None,
        names: tuple[str, str, str],
    ) -> onnx.ModelProto:
        self.width = folded.positions.shape[-1]
        tokens = self._patches(folded, names[0], tile_px, batch)
        for index, block in enumerate(blocks):
            tokens = self._block(tokens, block, f"backbone.blocks.{index}")
        self.module = "backbone"
        parts = []
        if folded.pooling == "cls" and not folded.gives_tokens:
            parts.append(self._layer_norm(self._cls(tokens), folded.norm, "norm"))
        else:
            tokens = self._layer_norm(tokens, folded.norm, "norm")
            if folded.pooling != "avg":
                parts.append(self._cls(tokens))
        if folded.pooling != "cls":
            patches = self._slice(tokens, folded.pooled_from, _END) if folded.pooled_from else tokens
            parts.append(self._op("ReduceMean", patches, self._integers([1]), keepdims=0))
        parts = [self._layer_norm(part, folded.fc_norm, "fc_norm") for part in parts]
        if len(parts) > 1:
            self._op("Concat", *parts, axis=1)
        self.nodes[-1].output[0] = names[1]
        size: Any = "batch" if batch is None else batch
        shapes = {names[1]: [size, self.width * len(parts)]}
        if folded.gives_tokens:
            self._slice(tokens, folded.prefix.shape[1], _END)
            self.nodes[-1].output[0] = names[2]
            shapes[names[2]] = [size, folded.token_count, self.width]
        graph = self.result.graph
        graph.node.extend(self.nodes)
        given = [size, tile_px, tile_px, 3]
        graph.input.append(helper.make_tensor_value_info(names[0], onnx.TensorProto.UINT8, given))
        graph.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()
        )
        return self.result

    def _patches(self, folded: "FoldedVit", tiles: str, tile_px: int, batch: int | None) -> str:
        self.module = "backbone.patch_embed"
        convolution = folded.patch_embed.proj
        count = ((tile_px - convolution.kernel_size[0]) // convolution.stride[0] + 1) ** 2
        # The cast comes before the transpose: TensorRT refuses a uint8 Transpose.
        pixels = self._op("Transpose", self._op("Cast", tiles, to=onnx.TensorProto.FLOAT), perm=[0, 3, 1, 2])
        # Normalisation stays apart: a graph in FP16 would round weights of a hundredth, and their sums over a mean.
        pixels = self._op("Sub", pixels, self._weight("mean", folded.mean))
        pixels = self._op("Mul", pixels, self._weight("scale", folded.scale))
        kernel = self._weight("proj.weight", convolution.weight / folded.scale)
        patches = self._op("Conv", pixels, kernel, strides=list(convolution.stride), leaf="proj")
        patches = self._op("Transpose", self._reshape(patches, [0, self.width, count]), perm=[0, 2, 1])
        self.module = "backbone"
        positions = folded.positions + (convolution.weight * folded.mean).sum((1, 2, 3))
        tokens = self._op("Add", patches, self._weight("pos_embed", positions))
        tokens = self._layer_norm(tokens, folded.norm_pre, "norm_pre")
        if not folded.prefix.shape[1]:
            return tokens
        shape = list(folded.prefix.shape)
        if batch is None:
            size = self._op("Concat", self._op("Shape", tiles, start=0, end=1), self._integers(shape[1:]), axis=0)
        else:
            size = self._integers([batch, *shape[1:]])
        prefix = self._op("Expand", self._weight("prefix", folded.prefix), size)
        return self._op("Concat", prefix, tokens, axis=1)

    def _block(self, tokens: str, block: "FoldedBlock", name: str) -> str:
        self.module = name
        normed = self._standardise(tokens, self.width, block.eps1, "norm1")
        queried = normed
        if block.cls_only:
            queried, tokens = self._slice(normed, 0, 1), self._slice(tokens, 0, 1)
        self.module = f"{name}.attn"
        attended = self._linear(self._attention(queried, normed, block), "proj", block.attn.proj)
        self.module = name
        tokens = self._op("Add", tokens, attended)
        normed = self._standardise(tokens, self.width, block.eps2, "norm2")
        self.module = f"{name}.mlp"
        mixed = self._linear(self._hidden(normed, block.mlp), "fc2", block.mlp.fc2)
        self.module = name
        return self._op("Add", tokens, mixed)

    def _attention(self, queried: str, tokens: str, block: "FoldedBlock") -> str:
        attention = block.attn
        # CLS, the first token, is not turned.
        query = self._heads(queried, "q", attention, attention.q_norm, None if block.cls_only else attention.rotation)
        key = self._heads(tokens, "k", attention, attention.k_norm, attention.rotation)
        value = self._heads(tokens, "v", attention, None, None)
        scores = self._op("MatMul", query, self._op("Transpose", key, perm=[0, 1, 3, 2]))
        attended = self._op("MatMul", self._op("Softmax", scores, axis=-1), value)
        merged = self._op("Transpose", attended, perm=[0, 2, 1, 3])
        width = attention.num_heads * attention.head_dim
        return self._standardise(self._reshape(merged, [0, 0, width]), width, attention.inner_eps, "norm")

    def _heads(
        self,
        tokens: str,
        leaf: str,
        attention: "FoldedAttention",
        norm: "HeadNorm | None",
        rotation: "Rotation | None",
    ) -> str:
        """Query, key or value of every head, `(B, heads, N, head_dim)`."""
        product = self._linear(tokens, leaf, getattr(attention, leaf))
        shape = [0, 0, attention.num_heads, attention.head_dim]
        heads = self._op("Transpose", self._reshape(product, shape), perm=[0, 2, 1, 3])
        if norm is not None:
            heads = self._head_norm(heads, f"{leaf}_norm", norm)
        return heads if rotation is None else self._turned(heads, rotation)

    def _head_norm(self, heads: str, leaf: str, norm: "HeadNorm") -> str:
        if norm.centred:
            heads = self._standardise(heads, norm.weight.shape[-1], norm.eps, leaf)
        else:
            power = self._op("ReduceMean", self._op("Mul", heads, heads), self._integers([-1]))
            heads = self._op("Div", heads, self._op("Sqrt", self._op("Add", power, self._scalar(norm.eps))))
        heads = self._op("Mul", heads, self._weight(f"{leaf}.weight", norm.weight))
        return self._op("Add", heads, self._weight(f"{leaf}.bias", norm.bias)) if norm.bias.any() else heads

    def _turned(self, heads: str, rotation: "Rotation") -> str:
        if id(rotation) not in self._tables:
            cos, sin = (self._weight(f"rope.{name}", getattr(rotation, name)[None]) for name in ("cos", "sin"))
            self._tables[id(rotation)] = cos, sin
        cos, sin = self._tables[id(rotation)]
        first = self._op("Split", heads, axis=-1, num_outputs=2, outputs=2)
        second = self.nodes[-1].output[1]
        turned = self._op("Concat", self._op("Neg", second), first, axis=-1)
        return self._op("Add", self._op("Mul", heads, cos), self._op("Mul", turned, sin))

    def _hidden(self, normed: str, mlp: "FoldedMlp") -> str:
        """What `fc2` reads, `(B, N, H)`."""
        first, *others = (self._linear(normed, leaf, getattr(mlp, leaf)) for leaf in mlp.first)
        hidden = self._activated(first, mlp.activation)
        for value in others:
            hidden = self._op("Mul", hidden, value)
        return self._standardise(hidden, mlp.fc2.in_features, mlp.inner_eps, "norm")

    def _activated(self, hidden: str, name: str) -> str:
        if name in ("gelu", "gelu_tanh"):
            return self._op("Gelu", hidden, approximate="none" if name == "gelu" else "tanh")
        if name in ("relu", "sigmoid"):
            return self._op(name.capitalize(), hidden)
        scaled = self._op("Mul", hidden, self._scalar(1.702)) if name == "quick_gelu" else hidden
        return self._op("Mul", hidden, self._op("Sigmoid", scaled))

    def _linear(self, tokens: str, leaf: str, layer: "nn.Linear") -> str:
        product = self._op("MatMul", tokens, self._weight(f"{leaf}.weight", layer.weight.T), leaf=leaf)
        return self._op("Add", product, self._weight(f"{leaf}.bias", layer.bias), leaf=leaf)

    def _layer_norm(self, tokens: str, norm: "nn.LayerNorm | None", leaf: str) -> str:
        if norm is None:
            return tokens
        # `fc_norm` reads the class token and the mean with the same weights.
        parts = [
            self._once(f"{self.module}.{leaf}.{name}", getattr(norm, name).detach().numpy())
            for name in ("weight", "bias")
        ]
        return self._op("LayerNormalization", tokens, *parts, axis=-1, epsilon=norm.eps, leaf=leaf)

    def _standardise(self, tokens: str, width: int, eps: float | None, leaf: str) -> str:
        """What is left of a LayerNorm over `width` channels when its weight and bias are folded."""
        if eps is None:
            return tokens
        parts = [
            self._once(f"{name}_{width}", np.full(width, value)) for name, value in (("ones", 1.0), ("zeros", 0.0))
        ]
        return self._op("LayerNormalization", tokens, *parts, axis=-1, epsilon=eps, leaf=leaf)

    def _cls(self, tokens: str) -> str:
        return self._op("Squeeze", self._slice(tokens, 0, 1), self._integers([1]))

    def _slice(self, tokens: str, start: int, stop: int) -> str:
        return self._op("Slice", tokens, *(self._integers([value]) for value in (start, stop, 1)))

    def _reshape(self, tokens: str, shape: list[int]) -> str:
        return self._op("Reshape", tokens, self._integers(shape))

    def _op(self, kind: str, *inputs: str, leaf: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns the name of its first output."""
        name = f"{self.module}{leaf and f'.{leaf}'}/{kind}_{len(self.nodes)}"
        results = [name, *(f"{name}:{place}" for place in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, results, name=name, **attributes))
        return name

    def _weight(self, leaf: str, values: "Tensor") -> str:
        name = f"{self.module}.{leaf}"
        assert name not in self.weights, name
        return self._once(name, values.detach().numpy())

    def _integers(self, values: Sequence[int]) -> str:
        return self._once("_".join(["shape", *map(str, values)]), np.array(values, dtype=np.int64))

    def _scalar(self, value: float) -> str:
        return self._once(f"scalar_{value!r}", np.array(value))

    def _once(self, name: str, values: NDArray[Any]) -> str:
        """A constant, stored when it is first asked for."""
        if name not in self.weights:
            kind = values.dtype if values.dtype == np.int64 else np.float32
            tensor = numpy_helper.from_array(np.ascontiguousarray(values, dtype=kind), name)
            if self.keep is not None:
                self.keep(tensor)
            self.weights.add(name)
            # One by one: what is added to a graph is copied.
            self.result.graph.initializer.append(tensor)
        return name
