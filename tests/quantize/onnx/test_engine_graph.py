from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from atlas_edge.errors import InputError
from atlas_edge.export.graph.rules import check_graph
from atlas_edge.quantize.onnx.engine_graph import engine_graph, fold_weights
from atlas_edge.spec import Precision

rng = np.random.default_rng(0)
FILTER = rng.normal(size=(8, 3, 4, 4)).astype(np.float32) * 0.05
WEIGHT = rng.normal(size=(6, 8)).astype(np.float32)


def save(path: Path, *, activation_scale: float = 0.4) -> Path:
    """Tiles (B, 8, 8, 3) -> quantized patch convolution -> quantized Linear (weight (out, in), as PyTorch exports)."""
    scale = np.abs(WEIGHT).max(axis=1) / 127
    tensors: dict[str, Any] = {
        "filter": FILTER,
        "pixel_scale": np.float32(2.0),
        "filter_scale": np.float32(0.002),
        "zero": np.int8(0),
        "shape": np.array([0, 8, 4], np.int64),
        "a_scale": np.float32(activation_scale),
        "weight": WEIGHT,
        "w_scale": scale.astype(np.float32),
        "w_zero": np.zeros(6, np.int8),
        "first": np.array([1], np.int64),
    }

    def pair(source: str, scale: str, zero: str, **axis: int) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"{source}_q"], name=f"{source}_q", **axis),
            helper.make_node(
                "DequantizeLinear", [f"{source}_q", scale, zero], [f"{source}_dq"], f"{source}_dq", **axis
            ),
        ]

    nodes = [
        helper.make_node("Cast", ["tiles"], ["grey"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["grey"], ["pixels"], name="nchw", perm=[0, 3, 1, 2]),
        *pair("pixels", "pixel_scale", "zero"),
        *pair("filter", "filter_scale", "zero"),
        helper.make_node("Conv", ["pixels_dq", "filter_dq"], ["patches"], name="conv", strides=[4, 4]),
        helper.make_node("Reshape", ["patches", "shape"], ["columns"], name="columns"),
        helper.make_node("Transpose", ["columns"], ["tokens"], name="tokens", perm=[0, 2, 1]),
        *pair("tokens", "a_scale", "zero"),
        *pair("weight", "w_scale", "w_zero", axis=0),
        helper.make_node("Transpose", ["weight_dq"], ["weight_t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["tokens_dq", "weight_t"], ["mixed"], name="fc"),
        helper.make_node("ReduceMean", ["mixed", "first"], ["pooled"], name="pool", keepdims=0),
        # PyTorch exports `.float()` of a float as such a Cast.
        helper.make_node("Cast", ["pooled"], ["embedding"], name="float", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["B", 8, 8, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run(path: Path, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"tiles": tiles})[0]
    return result


@pytest.mark.parametrize(
    ("precision", "stored", "off"), [(Precision.INT8, "INT8", 0.02), (Precision.FP8, "FLOAT8E4M3FN", 0.05)]
)
def test_the_engine_graph_keeps_the_rules_and_the_numbers(
    tmp_path: Path, precision: Any, stored: str, off: float
) -> None:
    source, out = save(tmp_path / "int8.onnx"), tmp_path / "engine.onnx"
    engine_graph(source, out, precision=precision)
    found = check_graph(out, precision=precision)
    assert (found.linears, found.quantized_linears) == (1, 1)
    assert found.casts == 3  # uint8 to float, float to half, half to float
    model = onnx.load(out)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 1  # the convolution's are gone, the weight's is folded
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = tensors["weight_quantized"]
    assert weight.data_type == getattr(TensorProto, stored)
    assert tuple(weight.dims) == (8, 6)
    tiles = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    # Full precision, in numpy.
    patches = tiles.reshape(5, 2, 4, 2, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(5, 4, 48).astype(np.float32)
    exact = (patches @ FILTER.reshape(8, 48).T @ WEIGHT.T).mean(axis=1)
    clipped = np.clip(patches @ FILTER.reshape(8, 48).T, -50.8, 50.8) @ WEIGHT.T
    expected = clipped.mean(axis=1)
    assert not np.allclose(exact, expected)  # the range clips here, so a wrong range shows
    np.testing.assert_allclose(run(out, tiles), expected, atol=off * np.abs(expected).max())


def test_a_scale_that_fp16_rounds_to_zero_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "int8.onnx", activation_scale=1e-9)
    with pytest.raises(InputError, match=r"tokens_q: a scale of 1\.0e-09 is 0\.0e\+00 in FP16"):
        engine_graph(source, tmp_path / "out.onnx", precision=Precision.INT8)


def test_a_scale_that_fp16_changes_much_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "int8.onnx", activation_scale=1.5 * 2**-24)  # half of 3 steps of 2^-24
    with pytest.raises(InputError, match=r"tokens_q: a scale of 8\.9e-08 is 1\.2e-07 in FP16"):
        engine_graph(source, tmp_path / "out.onnx", precision=Precision.INT8)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_rows_of_small_weights_keep_their_values(tmp_path: Path, precision: Any) -> None:
    # LayerScale makes such rows: without help FP16 rounds the first scale to zero and the second by 10 %.
    small = np.array([1, 1e-7, 1, 1e-5, 1, 1], np.float32)
    model = onnx.load(save(tmp_path / "plain.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name in ("weight", "w_scale"):
            values = numpy_helper.to_array(tensor)
            changed = values * (small if values.ndim == 1 else small[:, None])
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, tmp_path / "small.onnx")
    tiles = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found = {}
    for name in ("plain", "small"):
        engine_graph(tmp_path / f"{name}.onnx", tmp_path / "out.onnx", precision=precision)
        check_graph(tmp_path / "out.onnx", precision=precision)
        found[name] = run(tmp_path / "out.onnx", tiles)
    off = np.abs(found["small"] / small - found["plain"]).max(0) / np.abs(found["plain"]).max(0)
    assert off.max() < 0.02, off


def test_a_graph_without_quantized_products_is_refused(tmp_path: Path) -> None:
    model = onnx.load(save(tmp_path / "int8.onnx"))
    next(node for node in model.graph.node if node.name == "turn").input[0] = "weight"
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(InputError, match="no matrix product or convolution behind the first"):
        engine_graph(tmp_path / "plain.onnx", tmp_path / "out.onnx", precision=Precision.INT8)


def test_weights_are_stored_as_the_integers_that_they_are_rounded_to(tmp_path: Path) -> None:
    source, out = save(tmp_path / "int8.onnx"), tmp_path / "stored.onnx"
    fold_weights(source, out)
    model = onnx.load(out)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {name: tensor.data_type for name, tensor in tensors.items() if name.startswith(("weight", "filter"))}
    assert {name: kinds.get(name) for name in ("weight_quantized", "filter_quantized")} == dict.fromkeys(
        ("weight_quantized", "filter_quantized"), TensorProto.INT8
    )
    assert not {"weight", "filter"} & kinds.keys()
    tiles = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_allclose(run(out, tiles), run(source, tiles), rtol=1e-5)
