"""Whether OpenVINO's 8-bit sums are right on this processor.

Without VNNI or AMX the products of unsigned and signed bytes are added in pairs with saturation to 16 bits
(`vpmaddubsw`): 2 · 255 · 127 is out by half. Embeddings come out wrong, and in about the time that f32 takes.
"""

from functools import cache
from typing import Any

import numpy as np

from atlas_edge.hardware import cpu

_TERMS = 64


def int8_properties() -> dict[str, Any]:
    """Properties with which OpenVINO computes an INT8 model rightly here.

    Empty where 8-bit sums are exact. Where they saturate, low-precision transformations are switched off: the model's
    integer weights and rounded inputs are then multiplied in floating point, to the same embeddings.
    """
    return {} if int8_sums_are_exact() else {"LP_TRANSFORMS_MODE": False}


@cache
def int8_sums_are_exact() -> bool:
    """Whether 8-bit products are added without loss: known of VNNI and AMX, tried on any other processor."""
    found = cpu()
    return found.avx512_vnni or found.avx_vnni or found.amx_int8 or product_of_extremes() > 0.9


def product_of_extremes(**properties: Any) -> float:
    """A sum of products of the largest unsigned and signed bytes in OpenVINO, divided by its true value."""
    import openvino
    from openvino import opset13 as ops

    tokens = ops.parameter([8, _TERMS], np.float32)
    low, high = np.float32(0), np.float32(255)
    rounded = ops.fake_quantize(tokens, low, high, low, high, 256)
    weights = ops.convert(ops.constant(np.full((16, _TERMS), 127, np.int8)), np.float32)
    scaled = ops.multiply(weights, ops.constant(np.full((16, 1), 1 / 127, np.float32)))
    model = openvino.Model([ops.result(ops.matmul(rounded, scaled, False, True))], [tokens])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties})
    result = compiled({0: np.full((8, _TERMS), 255, np.float32)})[0]
    return float(np.median(result)) / (_TERMS * 255)
