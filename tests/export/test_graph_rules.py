from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from atlas_edge.errors import InputError
from atlas_edge.export.graph.rules import check_graph, find_breaches
from atlas_edge.export.graph.view import read_onnx
from atlas_edge.spec import Precision

Nodes = list[Any]
Tensors = dict[str, Any]


def block_graph() -> tuple[Nodes, Tensors]:
    """Tiles (B, 4, 4, 3) -> tokens (B, 16, 8) -> a Linear with Q/DQ -> residual -> LayerNorm -> attention -> mean."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 8)).astype(np.float32)
    tensors: Tensors = {
        "widen": rng.normal(size=(3, 8)).astype(np.float32),
        "to_tokens": np.array([0, 16, 3], np.int64),
        "a_scale": np.float32(0.1),
        "a_zero": np.int8(0),
        "weight": np.clip(np.round(weight / 0.02), -127, 127).astype(np.int8),
        "w_scale": np.full(8, 0.02, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "one": np.ones(8, np.float32),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["tiles"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "to_tokens"], ["tokens"], name="reshape"),
        helper.make_node("MatMul", ["tokens", "wide_dq"], ["x"], name="embed"),
        helper.make_node("QuantizeLinear", ["x", "a_scale", "a_zero"], ["x_q"], name="q"),
        helper.make_node("DequantizeLinear", ["x_q", "a_scale", "a_zero"], ["x_dq"], name="dq"),
        helper.make_node("DequantizeLinear", ["weight", "w_scale", "w_zero"], ["w_dq"], name="w_dq", axis=1),
        helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"], name="linear"),
        helper.make_node("Add", ["x", "y"], ["z"], name="residual"),
        helper.make_node("LayerNormalization", ["z", "one"], ["n"], name="norm"),
        helper.make_node("Transpose", ["n"], ["n_t"], name="key", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["n", "n_t"], ["logits"], name="qk"),
        helper.make_node("Softmax", ["logits"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "n"], ["o"], name="pv"),
        helper.make_node("ReduceMean", ["o", "last"], ["embedding"], name="pool", keepdims=0),
    ]
    nodes[2] = helper.make_node("MatMul", ["tokens", "widen"], ["x"], name="embed")
    return nodes, tensors


def save(path: Path, nodes: Nodes, tensors: Tensors, *, opset: int = 20) -> Path:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["B", 4, 4, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", None])
    graph = helper.make_graph(nodes, "g", [tiles], [embedding], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def insert_after(nodes: Nodes, name: str, *new: Any) -> None:
    at = next(index for index, node in enumerate(nodes) if node.name == name)
    nodes[at + 1 : at + 1] = new


def rewire(nodes: Nodes, name: str, position: int, tensor: str) -> None:
    next(node for node in nodes if node.name == name).input[position] = tensor


def quantized(tensor: str, out: str) -> Nodes:
    return [
        helper.make_node("QuantizeLinear", [tensor, "a_scale", "a_zero"], [f"{out}_q"], name=f"{out}_q"),
        helper.make_node("DequantizeLinear", [f"{out}_q", "a_scale", "a_zero"], [out], name=out),
    ]


def asymmetric(nodes: Nodes, tensors: Tensors) -> None:
    tensors["a_zero"] = np.int8(3)


def unsigned(nodes: Nodes, tensors: Tensors) -> None:
    tensors["a_zero"] = np.uint8(128)


def transpose_first(nodes: Nodes, tensors: Tensors) -> None:
    nodes.insert(0, helper.make_node("Transpose", ["tiles"], ["moved"], name="early", perm=[0, 2, 1, 3]))
    rewire(nodes, "cast", 0, "moved")


def late_scale(nodes: Nodes, tensors: Tensors) -> None:
    tensors["rsqrt"] = np.float32(0.35)
    insert_after(nodes, "qk", helper.make_node("Mul", ["logits", "rsqrt"], ["scaled"], name="late"))
    rewire(nodes, "softmax", 0, "scaled")


def cast_after_dequantize(nodes: Nodes, tensors: Tensors) -> None:
    insert_after(nodes, "dq", helper.make_node("Cast", ["x_dq"], ["x_cast"], name="stray", to=TensorProto.FLOAT))
    rewire(nodes, "linear", 0, "x_cast")


def quantized_residual(nodes: Nodes, tensors: Tensors) -> None:
    rewire(nodes, "residual", 0, "x_dq")


def quantized_norm(nodes: Nodes, tensors: Tensors) -> None:
    insert_after(nodes, "residual", *quantized("z", "z_dq"))
    rewire(nodes, "norm", 0, "z_dq")


def bare_linear(nodes: Nodes, tensors: Tensors) -> None:
    rewire(nodes, "linear", 0, "x")


def per_tensor_weight(nodes: Nodes, tensors: Tensors) -> None:
    tensors["w_scale"], tensors["w_zero"] = np.float32(0.02), np.int8(0)


def half_quantized_attention(nodes: Nodes, tensors: Tensors) -> None:
    insert_after(nodes, "norm", *quantized("n", "n_dq"))
    rewire(nodes, "qk", 0, "n_dq")


def odd_head_attention(nodes: Nodes, tensors: Tensors) -> None:
    half_quantized_attention(nodes, tensors)
    insert_after(nodes, "key", *quantized("n_t", "n_t_dq"))
    rewire(nodes, "qk", 1, "n_t_dq")


def decomposed_norm(nodes: Nodes, tensors: Tensors) -> None:
    tensors["axis"] = np.array([-1], np.int64)
    at = next(index for index, node in enumerate(nodes) if node.name == "norm")
    nodes[at : at + 1] = [
        helper.make_node("ReduceMean", ["z", "axis"], ["mean"], name="mean"),
        helper.make_node("Sub", ["z", "mean"], ["n"], name="centre"),
    ]


TAMPERED: list[tuple[Callable[[Nodes, Tensors], None], str, str]] = [
    (asymmetric, "node q: zero point 3, expected 0", "scales are symmetric"),
    (unsigned, "node q: it quantizes to uint8", "scales are symmetric"),
    (transpose_first, "node early: Transpose takes the uint8 tensor tiles", "cast before it"),
    (late_scale, "node late: Mul scales the logits", "scale Q and K instead"),
    (cast_after_dequantize, "node stray: Cast after dq", "give the scales the type of the graph"),
    (quantized_residual, "node residual: Add takes a dequantized tensor", "inputs of Linear layers only"),
    (quantized_norm, "node norm: LayerNormalization takes a dequantized tensor", "inputs of Linear layers only"),
    (bare_linear, "node linear: no Q/DQ on its input", "quantize every layer"),
    (per_tensor_weight, "node linear: one scale for the whole weight", "quantize every layer"),
    (half_quantized_attention, "node qk: one operand of an attention product", "leave attention unquantized"),
    (odd_head_attention, "node qk: head size 8 has no fused INT8 attention", "leave attention unquantized"),
    (decomposed_norm, "node mean: a LayerNorm written as ReduceMean", "opset 17"),
]


def test_a_graph_that_keeps_the_rules_is_described(tmp_path: Path) -> None:
    path = save(tmp_path / "good.onnx", *block_graph())
    found = check_graph(path, precision=Precision.INT8, float_linears=["embed"])
    assert (found.opset, found.linears, found.quantized_linears) == (20, 2, 1)
    assert (found.attention_products, found.quantized_attention_products, found.casts) == (2, 0, 1)


@pytest.mark.parametrize(("tamper", "found", "remedy"), TAMPERED, ids=[case[0].__name__ for case in TAMPERED])
def test_a_tampered_graph_is_refused_by_node_and_remedy(
    tmp_path: Path, tamper: Callable[[Nodes, Tensors], None], found: str, remedy: str
) -> None:
    nodes, tensors = block_graph()
    tamper(nodes, tensors)
    path = save(tmp_path / "bad.onnx", nodes, tensors)
    with pytest.raises(InputError) as refused:
        check_graph(path, precision=Precision.INT8, float_linears=["embed"])
    assert found in refused.value.message
    assert refused.value.hint is not None
    assert remedy in refused.value.hint


def test_attention_operator_is_refused_in_fp32_and_taken_in_fp16(tmp_path: Path) -> None:
    def graph(kind: int) -> list[Any]:
        return [
            helper.make_node("Cast", ["tiles"], ["x"], name="cast", to=kind),
            helper.make_node("Attention", ["x", "x", "x"], ["y"], name="attend"),
            helper.make_node("Cast", ["y"], ["embedding"], name="back", to=TensorProto.FLOAT),
        ]

    path = save(tmp_path / "fp32.onnx", graph(TensorProto.FLOAT), {}, opset=23)
    with pytest.raises(InputError, match=r"node attend: Attention \(opset 23\) in FP32"):
        check_graph(path, precision=Precision.FP32)
    assert check_graph(save(tmp_path / "fp16.onnx", graph(TensorProto.FLOAT16), {}, opset=23), precision=Precision.FP16)


def test_every_breach_is_listed(tmp_path: Path) -> None:
    nodes, tensors = block_graph()
    asymmetric(nodes, tensors)
    quantized_residual(nodes, tensors)
    path = save(tmp_path / "bad.onnx", nodes, tensors)
    breaches = find_breaches(read_onnx(path), precision=Precision.INT8, float_linears=["embed"])
    assert [breach.node for breach in breaches] == ["q", "dq", "residual"]


def test_the_same_tampering_is_no_matter_where_its_rule_does_not_hold(tmp_path: Path) -> None:
    nodes, tensors = block_graph()
    late_scale(nodes, tensors)
    check_graph(save(tmp_path / "fp32.onnx", nodes, tensors), precision=Precision.FP32)


@pytest.mark.parametrize("data", [b"", b"not an onnx file", b"\x08\x0a\x12"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError):
        check_graph(path, precision=Precision.FP32)
