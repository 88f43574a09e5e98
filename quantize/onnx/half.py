"""FP16 and BF16 ONNX: the whole graph in half precision, uint8 in, float32 out."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.graph import load_onnx, save_onnx
from atlas_edge.spec import Precision

if TYPE_CHECKING:
    import onnx


def cast_onnx(
    fp32_path: Path,
    out: Path,
    precision: Precision,
    *,
    weights_only: bool = False,
    float32_values: Collection[str] = (),
) -> int:
    """Convert an fp32 ONNX encoder to FP16 or BF16.

    Normalisation of the pixels stays in float32 (255 levels and an exact mean cost nothing there). LayerNormalization
    is the fused operator, which accumulates in float32 whatever its input: written out as Pow and ReduceMean it
    overflows in FP16.

    In BF16 convolutions stay in float32: ONNX has no BF16 Conv before opset 22.

    Args:
        fp32_path: Graph with input `tiles` uint8 and output `embedding` float32, opset 17 to 21.
        out: Where to write.
        precision: FP16 or BF16.
        weights_only: Store weights in half precision and compute in float32. ONNX Runtime's CPU provider has no BF16
            kernels for Add, Expand and most others (1.32: NOT_IMPLEMENTED at load), so a BF16 graph that it can run
            holds BF16 weights only.
        float32_values: Outputs of nodes that stay in FP32 (`fp16_range.half_range`). No Cast comes beside a Q/DQ pair:
            QuantizeLinear takes what it is given, and DequantizeLinear gives what is wanted, by the type of the scale.

    Returns:
        How many matrix products and convolutions read half-precision weights.

    Raises:
        UsageError: Another precision.
        InputError: A weight does not fit into FP16, or the graph holds LayerNorm in pieces.
    """
    import onnx

    if precision not in {Precision.FP16, Precision.BF16}:
        raise UsageError(f"cannot cast to {precision.value}", hint="choose fp16 or bf16")
    # Weights beside the file are read one by one: whole, a large network would be in memory three times.
    model, folder = load_onnx(fp32_path, weights=False), fp32_path.parent
    graph = model.graph
    _check_layer_norm(graph)
    half = onnx.TensorProto.FLOAT16 if precision is Precision.FP16 else onnx.TensorProto.BFLOAT16
    inline_constants(graph)
    if weights_only:
        converted = _store_weights(graph, half, folder)
        _save_checked(model, out, folder)
        return converted
    kept = _float32_nodes(graph, bf16=precision is Precision.BF16)
    kept |= _named_nodes(graph, set(float32_values))
    floats = _float32_values(graph)
    converted = sum(n.op_type in {"MatMul", "Gemm", "Conv"} and i not in kept for i, n in enumerate(graph.node))
    _rewrite(graph, kept, floats, half, folder)
    del graph.value_info[:]
    _save_checked(model, out, folder)
    return converted


def inline_constants(graph: "onnx.GraphProto") -> None:
    """Turn Constant nodes into initializers, so that weights and constants are converted alike."""
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _save_checked(model: "onnx.ModelProto", out: Path, folder: Path) -> None:
    import onnx

    save_onnx(model, out, weights_from=folder)
    # By its path: in memory the checker takes 2 GiB at most.
    onnx.checker.check_model(str(out), full_check=True)


def _check_layer_norm(graph: "onnx.GraphProto") -> None:
    kinds = {node.op_type for node in graph.node}
    if "Pow" in kinds and "ReduceMean" in kinds and "LayerNormalization" not in kinds:
        raise InputError(
            "the graph computes LayerNorm in pieces, which overflows in FP16", hint="export it with opset 17 or later"
        )


def _store_weights(graph: "onnx.GraphProto", half: int, folder: Path) -> int:
    import onnx

    products = {name for n in graph.node if n.op_type in {"MatMul", "Gemm", "Conv"} for name in n.input[1:2]}
    weights = [t for t in graph.initializer if t.name in products and t.data_type == onnx.TensorProto.FLOAT]
    for position, tensor in enumerate(weights):
        graph.initializer.append(_to_half(tensor, f"{tensor.name}_half", half, folder))
        cast = onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT)
        graph.node.insert(position, cast)
        graph.initializer.remove(tensor)
    return len(weights)


def _float32_nodes(graph: "onnx.GraphProto", *, bf16: bool) -> set[int]:
    """Positions of nodes that stay in float32: from the pixels to the first convolution or product; Conv in BF16."""
    kept = _table_nodes(graph)
    reached = {"tiles"}
    for position, node in enumerate(graph.node):
        if bf16 and node.op_type == "Conv":
            kept.add(position)
        if node.op_type in {"Conv", "MatMul", "Gemm", "Shape"} or not reached & set(node.input):
            continue
        kept.add(position)
        reached |= set(node.output)
    return kept


def _table_nodes(graph: "onnx.GraphProto") -> set[int]:
    """Positions of the nodes that compute tables from the shape alone, such as rotary positions.

    Range has no form in half precision, and angles lose their last digits in it.
    """
    computed, tables = {"tiles"}, set[str]()
    kept: set[int] = set()
    for position, node in enumerate(graph.node):
        if node.op_type != "Shape" and computed & set(node.input):
            computed |= set(node.output)
        elif node.op_type == "Range" or tables & set(node.input):
            tables |= set(node.output)
            kept.add(position)
    read = {name for position in kept for name in graph.node[position].input}
    for position, node in reversed(list(enumerate(graph.node))):
        if read & set(node.output) and not computed & set(node.output):
            kept.add(position)
            read |= set(node.input)
    return kept


def _named_nodes(graph: "onnx.GraphProto", values: set[str]) -> set[int]:
    """Positions of the nodes that compute `values`, and of the DequantizeLinear that feed them."""
    kept = {position for position, node in enumerate(graph.node) if values & set(node.output)}
    read = {name for position in kept for name in graph.node[position].input}
    return kept | {
        position
        for position, node in enumerate(graph.node)
        if node.op_type == "DequantizeLinear" and read & set(node.output)
    }


def _float32_values(graph: "onnx.GraphProto") -> set[str]:
    import onnx

    typed = [*graph.value_info, *graph.output, *graph.input]
    values = {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return values | {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}


def _rewrite(graph: "onnx.GraphProto", kept: set[int], floats: set[str], half: int, folder: Path) -> None:
    """Give every node inputs of its own precision, inserting a Cast where a value crosses over."""
    import onnx

    initializers = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    in_half: set[str] = set()
    made: dict[tuple[str, bool], str] = {}
    nodes: list[onnx.NodeProto] = []

    def as_precision(name: str, want_half: bool) -> str:
        if name not in floats or (name not in initializers and (name in in_half) == want_half):
            return name
        if name in initializers and not want_half:
            return name
        if (name, want_half) not in made:
            made[name, want_half] = f"{name}_{'half' if want_half else 'float'}"
            if name in initializers:
                graph.initializer.append(_to_half(initializers[name], made[name, want_half], half, folder))
            else:
                to = half if want_half else onnx.TensorProto.FLOAT
                nodes.append(onnx.helper.make_node("Cast", [name], [made[name, want_half]], to=to))
        return made[name, want_half]

    for position, node in enumerate(graph.node):
        low = position not in kept
        if node.op_type == "QuantizeLinear" and node.input[0] not in initializers:
            low = node.input[0] in in_half
        node_inputs = [as_precision(name, low) for name in node.input]
        del node.input[:]
        node.input.extend(node_inputs)
        nodes.append(node)
        if not low:
            continue
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT:
            node.attribute[0].i = half
        if node.op_type == "ConstantOfShape" and floats.intersection(node.output):
            value = (
                node.attribute[0].t
                if node.attribute
                else onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [0.0])
            )
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", _to_half(value, "", half, folder)))
        for i, name in enumerate(node.output):
            if name in outputs and name in floats:
                node.output[i] = f"{name}_half"
                nodes.append(onnx.helper.make_node("Cast", [node.output[i]], [name], to=onnx.TensorProto.FLOAT))
            elif name in floats:
                in_half.add(name)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in used:
            del graph.initializer[place]


def _to_half(tensor: "onnx.TensorProto", name: str, half: int, folder: Path) -> "onnx.TensorProto":
    import onnx

    values = onnx.numpy_helper.to_array(tensor, str(folder)).astype(np.float32, copy=False)
    if half == onnx.TensorProto.FLOAT16:
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise InputError(f"{tensor.name} holds values beyond FP16's range", hint="use bf16")
        return onnx.numpy_helper.from_array(values.astype(np.float16), name)
    import ml_dtypes

    return onnx.numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), name)
