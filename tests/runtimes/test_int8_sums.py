"""8-bit sums of OpenVINO and ONNX Runtime, exact also where pairs of products saturate at 16 bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.bench.speed.warnings import _of_encoder
from atlas_edge.errors import UsageError
from atlas_edge.runtimes import int8_sums
from atlas_edge.runtimes import openvino as runtime
from atlas_edge.runtimes.devices import openvino as openvino_device
from atlas_edge.runtimes.int8_sums import with_float_weights
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.hardware import cpu

ov = pytest.importorskip("openvino")
SIDE, TERMS, WIDTH = 4, 48, 16
SPEC = EncoderSpec(
    name="extremes", architecture="extremes", embed_dim=WIDTH, tile_px=SIDE, mpp=0.5, mean=(0, 0, 0), std=(1, 1, 1),
    pooling="avg",
)  # fmt: skip
NOTHING = replace(cpu(), avx512_vnni=False, avx_vnni=False, amx_int8=False)


@pytest.fixture
def tried_anew() -> Any:
    int8_sums.int8_sums_are_exact.cache_clear()
    yield
    int8_sums.int8_sums_are_exact.cache_clear()


def test_the_largest_products_of_an_int8_model_are_added_exactly() -> None:
    if int8_sums.product_of_extremes() > 0.9:
        pytest.skip("this processor adds 8-bit products exactly: there is nothing to get wrong")
    white = np.full((3, SIDE, SIDE, 3), 255, np.uint8)
    np.testing.assert_allclose(encoder_of_extremes().encode(white), TERMS * 255, rtol=1e-3)


@pytest.mark.parametrize("device", ["AUTO", "HETERO:CPU"])
def test_a_virtual_device_adds_exactly_or_is_refused(device: str) -> None:
    """What makes the processor add exactly does not reach it through them."""
    white = np.full((3, SIDE, SIDE, 3), 255, np.uint8)
    if device == "AUTO" or int8_sums.int8_sums_are_exact():
        np.testing.assert_allclose(encoder_of_extremes(device).encode(white), TERMS * 255, rtol=1e-3)
    else:
        with pytest.raises(UsageError, match="INT8 bundle wrong"):
            encoder_of_extremes(device)


def test_in_float_an_int8_model_computes_the_same_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_device, "int8_properties", lambda: {"LP_TRANSFORMS_MODE": False})
    folded: list[Any] = []
    monkeypatch.setattr(runtime, "with_float_weights", lambda model: folded.append(model) or with_float_weights(model))
    encoder = encoder_of_extremes()
    assert encoder.runtime.endswith("+ int8 computed in float")
    np.testing.assert_allclose(encoder.encode(np.full((1, SIDE, SIDE, 3), 255, np.uint8)), TERMS * 255, rtol=1e-6)
    assert folded
    assert any("use --precision fp32" in text for text in _of_encoder(encoder))


def test_weights_in_float_take_the_place_of_bytes_and_the_model_computes_the_same() -> None:
    from openvino import opset13 as ops

    def built() -> Any:
        tiles = ops.parameter([-1, 8, 8, 3], np.uint8, name="tiles")
        values = ops.transpose(ops.convert(tiles, "f32"), np.array([0, 3, 1, 2]))
        weights = ops.convert(
            ops.constant(np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3)).astype(np.uint8)), "f32"
        )
        centred = ops.subtract(weights, ops.constant(np.full((4, 1, 1, 1), 128, np.float32)))
        scaled = ops.multiply(centred, ops.constant(np.full((4, 1, 1, 1), 1e-3, np.float32)))
        return ov.Model([ops.convolution(values, scaled, [1, 1], [0, 0], [0, 0], [1, 1])], [tiles])

    tiles = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    before, after = built(), int8_sums.with_float_weights(built())
    kinds = [node.get_type_name() for node in after.get_ops()]
    # The pixels' own conversion stays; so does what multiplies computed tensors.
    assert kinds.count("Convert") == 1 and not {"Subtract", "Multiply"} & set(kinds)
    expected, found = (ov.Core().compile_model(model, "CPU")(tiles)[0] for model in (before, after))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_nothing_is_tried_or_changed_where_the_processor_has_8_bit_dot_products(
    monkeypatch: pytest.MonkeyPatch, tried_anew: None
) -> None:
    monkeypatch.setattr(int8_sums, "product_of_extremes", lambda: pytest.fail("tried"))
    for feature in ("avx512_vnni", "avx_vnni", "amx_int8"):
        int8_sums.int8_sums_are_exact.cache_clear()
        monkeypatch.setattr(int8_sums, "cpu", lambda feature=feature: replace(NOTHING, **{feature: True}))
        assert int8_sums.int8_properties() == {}


@pytest.mark.parametrize(("share", "properties"), [(0.506, {"LP_TRANSFORMS_MODE": False}), (0.9999, {})])
def test_other_processors_are_judged_by_a_sum(
    share: float, properties: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tried_anew: None
) -> None:
    monkeypatch.setattr(int8_sums, "cpu", lambda: NOTHING)
    monkeypatch.setattr(int8_sums, "product_of_extremes", lambda: share)
    assert int8_sums.int8_properties() == properties


def test_openvino_can_compute_an_int8_model_in_float() -> None:
    assert int8_sums.product_of_extremes(LP_TRANSFORMS_MODE=False) == pytest.approx(1, abs=1e-6)


def test_the_largest_products_are_added_exactly_in_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    helper, types = onnx.helper, onnx.TensorProto
    constants = {
        "shape": np.array([-1, TERMS]), "step": np.float32(2), "zero": np.int8(0),
        "weight": np.full((TERMS, WIDTH), 127, np.int8), "steps": np.full(WIDTH, 1 / 127, np.float32),
        "zeros": np.zeros(WIDTH, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["tiles"], ["float"], to=types.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "step", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "steps", "zeros"], ["scaled"], axis=1),
        helper.make_node("MatMul", ["rounded", "scaled"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "extremes",
        [helper.make_tensor_value_info("tiles", types.UINT8, [None, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", types.FLOAT, [None, WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "extremes.onnx"
    )
    encoder = OnnxEncoder(tmp_path / "extremes.onnx", SPEC)
    white = np.full((3, SIDE, SIDE, 3), 255, np.uint8)
    np.testing.assert_allclose(encoder.encode(white), TERMS * 254, rtol=1e-3)


def encoder_of_extremes(device: str | None = None) -> runtime.OpenVinoEncoder:
    """White tiles times the largest weights: every product is the largest that there is."""
    from openvino import opset13 as ops

    tiles = ops.parameter([-1, SIDE, SIDE, 3], np.uint8, name="tiles")
    values = ops.reshape(ops.convert(tiles, "f32"), np.array([-1, TERMS]), special_zero=False)
    low, high = np.float32(0), np.float32(255)
    rounded = ops.fake_quantize(values, low, high, low, high, 256)
    weights = ops.convert(ops.constant(np.full((WIDTH, TERMS), 127, np.int8)), "f32")
    scaled = ops.multiply(weights, ops.constant(np.full((WIDTH, 1), 1 / 127, np.float32)))
    model = ov.Model([ops.matmul(rounded, scaled, False, True)], [tiles], "extremes")
    return runtime.OpenVinoEncoder(model, SPEC, batch=2, streams=1, device=device)
