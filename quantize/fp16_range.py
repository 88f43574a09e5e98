"""Whether an encoder's activations fit into FP16, on the calibration tiles."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError

HALF_MAX = float(np.finfo(np.float16).max)
# Calibration tiles don't hold every tile's largest value.
_HEADROOM = 4.0
_WATCHED = ("Add", "MatMul", "Gemm", "Conv", "Mul", "Div", "Sub", "Gelu", "LayerNormalization", "Softmax")


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfRange:
    """The largest activation.

    Attributes:
        largest: Its absolute value.
        node: Node that computes it.
        headroom: 65504 / `largest`.
        tiles: Tiles looked at.
    """

    largest: float
    node: str
    headroom: float
    tiles: int


def check_half_range(fp32_path: Path, tiles: NDArray[np.uint8]) -> HalfRange:
    """Run a full-precision graph and look at what every product, sum and normalisation computes.

    Pixels before normalisation stay in FP32 in every graph that is made here, but are below 256 anyway.

    Args:
        fp32_path: Full-precision ONNX.
        tiles: `(N, H, W, 3)` uint8; a few calibration tiles.

    Raises:
        InputError: A value leaves less than a factor of 4 to FP16's largest, or is not finite.
    """
    import onnx
    import onnxruntime

    model = onnx.shape_inference.infer_shapes(onnx.load(fp32_path))
    known = {info.name: info for info in model.graph.value_info}
    watched = {
        node.output[0]: node.name
        for node in model.graph.node
        if node.op_type in _WATCHED
        and node.output[0] in known
        and known[node.output[0]].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    model.graph.output.extend(known[name] for name in watched)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest, where = 0.0, ""
    names = list(watched)
    for index in range(len(tiles)):
        for name, value in zip(names, session.run(names, {"tiles": tiles[index : index + 1]}), strict=True):
            peak = float(np.abs(value).max(initial=0.0))
            if not peak <= largest:  # also true for NaN
                largest, where = peak, watched[name]
    if not largest * _HEADROOM <= HALF_MAX:
        raise InputError(
            f"node {where} reaches {largest:.3g} on calibration tiles; FP16 ends at {HALF_MAX:.0f}, and a factor of "
            f"{_HEADROOM:.0f} is kept free",
            hint="use --precision fp32 or bf16",
        )
    return HalfRange(largest=largest, node=where, headroom=HALF_MAX / max(largest, 1e-30), tiles=len(tiles))
