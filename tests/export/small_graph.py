"""A graph that builds in a blink."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TILE_PX, DIM = 8, 16


def write_small_graph(path: Path) -> Path:
    """Tiles (B, 8, 8, 3) uint8 -> mean over pixels -> Linear -> (B, 16) float32."""
    weight = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["tiles"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["embedding"], name="linear"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["B", TILE_PX, TILE_PX, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", DIM])],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes"), numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
