"""A read-only view of an ONNX graph: producers, consumers, constants and types by tensor name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.models.graph import load_onnx

# Operators that hand a constant on without doing arithmetic that a quantizer would care about.
_PASS_THROUGH = {"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten"}
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A matrix product or convolution with constant weights.

    Attributes:
        name: Node name.
        weight_dequantize: The DequantizeLinear node between the stored weight and the product; None without one.
        input_dequantize: The DequantizeLinear node that feeds the activations; None without one.
    """

    name: str
    weight_dequantize: Any
    input_dequantize: Any


@dataclass(frozen=True, slots=True)
class OnnxView:
    """Lookups over one graph; `model` is the `onnx.ModelProto`."""

    model: Any
    producer: dict[str, Any] = field(default_factory=dict)
    consumers: dict[str, list[Any]] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Any]:
        """Nodes in the graph's order."""
        return list(self.model.graph.node)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max(int(entry.version) for entry in self.model.opset_import if entry.domain in {"", "ai.onnx"})

    def constant(self, name: str) -> NDArray[Any] | None:
        """Value of an initializer or Constant node, None for anything computed."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def stored_type(self, name: str) -> int | None:
        """`onnx.TensorProto` element type, None where inference did not find it."""
        return self.constants[name].data_type if name in self.constants else self.types.get(name)

    def source(self, name: str) -> Any:
        """The node that computes a tensor, looking through reshapes and casts; None for inputs and constants."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _PASS_THROUGH:
            node = self.producer.get(node.input[0])
        return node

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on constants only, through quantization and reshapes."""
        return self.weight_dequantize(name)[0]

    def weight_dequantize(self, name: str) -> tuple[bool, Any]:
        """Walk back from a weight operand: (whether it is constant, the DequantizeLinear passed on the way)."""
        dequantize = None
        while name not in self.constants:
            node = self.producer.get(name)
            if node is None or node.op_type not in _PASS_THROUGH | {QUANTIZE, DEQUANTIZE}:
                return False, None
            if node.op_type == DEQUANTIZE:
                dequantize = node
            name = node.input[0]
        return True, dequantize

    def linears(self) -> list[Linear]:
        """Every MatMul and Gemm with constant weights, in the graph's order."""
        return self._weighted({"MatMul", "Gemm"})

    def convolutions(self) -> list[Linear]:
        """Every Conv with constant weights, in the graph's order; the first reads pixels."""
        return self._weighted({"Conv"})

    def _weighted(self, kinds: set[str]) -> list[Linear]:
        found = []
        for node in self.nodes:
            if node.op_type not in kinds or self.is_constant(node.input[0]):
                continue
            constant, dequantize = self.weight_dequantize(node.input[1])
            if constant:
                feed = self.source(node.input[0])
                fed = feed if feed is not None and feed.op_type == DEQUANTIZE else None
                found.append(Linear(name=node.name, weight_dequantize=dequantize, input_dequantize=fed))
        return found

    def products(self) -> list[Any]:
        """Every MatMul of two computed operands: the two of attention."""
        return [
            node
            for node in self.nodes
            if node.op_type == "MatMul" and not any(self.is_constant(name) for name in node.input)
        ]


def read_onnx(path: Path) -> OnnxView:
    """Load a graph, check it and infer its types.

    Raises:
        InputError: Missing, not ONNX, or inconsistent.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected an ONNX file")
    try:
        model = load_onnx(path)
    except Exception as error:  # protobuf, the checker and shape inference share no base
        raise InputError(
            f"{path} is not a readable ONNX graph: {' '.join(str(error).split())[:200]}", hint="export it again"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{path} holds no ONNX graph ({path.stat().st_size} bytes)", hint="export it again")
    return view(model)


def view(model: Any) -> OnnxView:
    """Index a loaded model whose shapes have been inferred."""
    graph = model.graph
    result = OnnxView(model)
    result.constants.update({tensor.name: tensor for tensor in graph.initializer})
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    result.constants[node.output[0]] = attribute.t
        for name in node.output:
            result.producer[name] = node
        for name in node.input:
            result.consumers.setdefault(name, []).append(node)
    for info in [*graph.input, *graph.value_info, *graph.output]:
        tensor = info.type.tensor_type
        result.types[info.name] = tensor.elem_type
        if tensor.HasField("shape"):
            result.shapes[info.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )
    return result
