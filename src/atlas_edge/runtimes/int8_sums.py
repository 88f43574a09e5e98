"""Whether OpenVINO's 8-bit sums are right on this processor.

Without VNNI or AMX the products of unsigned and signed bytes are added in pairs with saturation to 16 bits
(`vpmaddubsw`): 2 · 255 · 127 is out by half. Embeddings come out wrong, and in about the time that f32 takes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from atlas_edge.runtimes.openvino_library import openvino_library
from atlas_edge.system.hardware import cpu

_TERMS = 64


def int8_properties() -> dict[str, Any]:
    """Properties with which OpenVINO computes an INT8 model rightly here.

    Empty where 8-bit sums are exact. Where they saturate, low-precision transformations are switched off: the model's
    integer weights and rounded inputs are then multiplied in floating point, to the same embeddings.
    """
    return {} if int8_sums_are_exact() else {"LP_TRANSFORMS_MODE": False}


def with_float_weights(model: Any) -> Any:
    """Put float32 constants in the place of stored 8-bit weights; the model, changed in place, computes what it did.

    Left to itself, the plugin (2026.4) turns the weights of convolutions to float32 in each of its streams at the first
    use, without a lock where low-precision transformations are off: with two streams, in about every second
    fresh model of a small ResNet embeddings came out wrong (55 of 120, cosine 0.65 to 0.98; so none of 40).
    """
    opset13 = openvino_library().opset13
    steps: dict[str, Callable[[Any, Any], Any]] = {
        "Convert": lambda value, _: value,
        "Subtract": np.subtract,
        "Multiply": np.multiply,
    }
    for node in model.get_ordered_ops():
        sources = [value.get_node() for value in node.input_values()]
        kind = node.get_type_name()
        if kind not in steps or any(source.get_type_name() != "Constant" for source in sources):
            continue
        if node.get_element_type().get_type_name() != "f32":
            continue
        first, last = (sources[index].get_data().astype(np.float32) for index in (0, -1))
        folded = opset13.constant(steps[kind](first, last))
        folded.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(folded.output(0))
    return model


@cache
def int8_sums_are_exact() -> bool:
    """Whether 8-bit products are added without loss: known of VNNI and AMX, tried on any other processor."""
    found = cpu()
    return found.avx512_vnni or found.avx_vnni or found.amx_int8 or product_of_extremes() > 0.9


def product_of_extremes(**properties: Any) -> float:
    """A sum of products of the largest unsigned and signed bytes in OpenVINO, divided by its true value."""
    openvino = openvino_library()
    ops = openvino.opset13
    tokens = ops.parameter([8, _TERMS], np.float32)
    low, high = np.float32(0), np.float32(255)
    rounded = ops.fake_quantize(tokens, low, high, low, high, 256)
    weights = ops.convert(ops.constant(np.full((16, _TERMS), 127, np.int8)), np.float32)
    scaled = ops.multiply(weights, ops.constant(np.full((16, 1), 1 / 127, np.float32)))
    model = openvino.Model([ops.result(ops.matmul(rounded, scaled, False, True))], [tokens])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties})
    result = compiled({0: np.full((8, _TERMS), 255, np.float32)})[0]
    return float(np.median(result)) / (_TERMS * 255)
