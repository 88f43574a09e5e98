from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.onnx.fakequant import embed
from atlas_edge.quantize.onnx.qdq import check_coverage, quantize_onnx
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.runtimes.onnxruntime import OnnxEncoder

Batches = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def quantized(tiny: LoadedModel, calibration: Batches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "model.onnx"
    report = quantize_onnx(tiny.module, tiny.spec, calibration, out, recipe=Recipe(smooth_alphas=(0.5, 0.75)))
    assert report["quantized_layers"] == 9
    assert report["coverage"] == {"Conv": "1 of 1", "MatMul": "8 of 12"}
    assert report["smooth_alpha"] in (0.5, 0.75)
    return out


def test_every_linear_is_symmetric_int8(quantized: Path) -> None:
    graph = onnx.load(quantized).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    values |= {n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    dequantize = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    assert len(dequantize) == 18
    assert all(not values[n.input[2]].any() for n in dequantize)
    assert all(values[n.input[2]].dtype == np.int8 for n in dequantize)
    per_channel = [n for n in dequantize if values[n.input[1]].size > 1]
    assert len(per_channel) == 9


def test_runs_close_to_full_precision(quantized: Path, tiny: LoadedModel, held_out: NDArray[np.uint8]) -> None:
    encoder = OnnxEncoder(quantized, tiny.spec)
    reference = embed(tiny.module, [held_out])
    result = encoder.encode(held_out)
    assert not np.array_equal(result, reference)
    assert embedding_agreement(reference, result).cosine_worst > 0.995


def test_builds_in_tensorrt_rtx(quantized: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(quantized.read_bytes()), [str(parser.get_error(i)) for i in range(parser.num_errors)]


def test_excluded_layer_stays_in_float(tiny: LoadedModel, calibration: Batches, tmp_path: Path) -> None:
    recipe = Recipe(exclude=("blocks.*.mlp.fc2",), patch_embed=False)
    report = quantize_onnx(tiny.module, tiny.spec, calibration, tmp_path / "m.onnx", recipe=recipe, batch=4)
    assert report["coverage"] == {"Conv": "0 of 1", "MatMul": "6 of 12"}


def test_unknown_exclusion_is_refused(tiny: LoadedModel, calibration: Batches, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fc9"):
        quantize_onnx(tiny.module, tiny.spec, calibration, tmp_path / "m.onnx", recipe=Recipe(exclude=("*.fc9",)))


def test_no_tiles_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no calibration tiles"):
        quantize_onnx(tiny.module, tiny.spec, [], tmp_path / "m.onnx", recipe=Recipe())


def test_missing_coverage_is_an_error(tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match=r"0 products .* blocks\.0\.mlp\.fc1 is not as it should be"):
        check_coverage(tiny_onnx, ["blocks.0.mlp.fc1"])
