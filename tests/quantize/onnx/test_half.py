from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.onnx.fakequant import embed
from atlas_edge.quantize.onnx.half import cast_onnx
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.spec import Precision


def test_fp16_runs_and_keeps_its_interface(
    tiny: LoadedModel, tiny_onnx: Path, tmp_path: Path, held_out: NDArray[np.uint8]
) -> None:
    out = tmp_path / "fp16.onnx"
    assert cast_onnx(tiny_onnx, out, Precision.FP16) == 17
    graph = onnx.load(out).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "LayerNormalization" in {node.op_type for node in graph.node}
    assert out.stat().st_size < 0.6 * tiny_onnx.stat().st_size
    result = OnnxEncoder(out, tiny.spec).encode(held_out)
    reference = embed(tiny.module, [held_out])
    assert 0 < np.abs(result - reference).max() < 0.02


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_parses_in_tensorrt_rtx(tiny_onnx: Path, tmp_path: Path, precision: Precision) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    cast_onnx(tiny_onnx, tmp_path / "half.onnx", precision)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse((tmp_path / "half.onnx").read_bytes())


def test_bf16_keeps_the_convolution_in_float(tiny_onnx: Path, tmp_path: Path) -> None:
    assert cast_onnx(tiny_onnx, tmp_path / "bf16.onnx", Precision.BF16) == 16


def test_bf16_weights_run_in_onnx_runtime(
    tiny: LoadedModel, tiny_onnx: Path, tmp_path: Path, held_out: NDArray[np.uint8]
) -> None:
    out = tmp_path / "bf16.onnx"
    assert cast_onnx(tiny_onnx, out, Precision.BF16, weights_only=True) == 13
    assert out.stat().st_size < 0.6 * tiny_onnx.stat().st_size
    result = OnnxEncoder(out, tiny.spec).encode(held_out)
    reference = embed(tiny.module, [held_out])
    assert not np.array_equal(result, reference)
    assert embedding_agreement(reference, result).cosine_worst > 0.9999


def test_other_precisions_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        cast_onnx(tiny_onnx, tmp_path / "m.onnx", Precision.INT8)


def test_weight_beyond_fp16_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    weight = next(t for t in model.graph.initializer if t.name.endswith("mlp.fc1.bias"))
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, 1e6, np.float32), weight.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(InputError, match="beyond FP16"):
        cast_onnx(tmp_path / "large.onnx", tmp_path / "m.onnx", Precision.FP16)
