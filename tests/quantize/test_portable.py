"""Weights of 7 bits: plain OpenVINO and ONNX Runtime compute the file exactly, with VNNI or without."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.cli import run_app
from atlas_edge.errors import InputError, UsageError
from atlas_edge.export.config import resolve
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.backend import Job, backend_of
from atlas_edge.quantize.cli import app
from atlas_edge.quantize.numerics.ranges import ActivationGrid
from atlas_edge.quantize.onnx import qdq
from atlas_edge.quantize.openvino.grids import VitGrids
from atlas_edge.quantize.openvino.nncf import integer_weights, quantize_openvino
from atlas_edge.quantize.openvino.operators import Operators
from atlas_edge.quantize.portable import check_portable
from atlas_edge.quantize.recipe import Recipe, for_portable, load_recipe, nncf_recipe, onnx_recipe, openvino_recipe
from atlas_edge.runtimes.int8_sums import int8_sums_are_exact
from atlas_edge.spec import Precision, Target

ov = pytest.importorskip("openvino")
Batches = list[NDArray[np.uint8]]
IN_FLOAT: dict[str, Any] = {"LP_TRANSFORMS_MODE": False}


@pytest.fixture(scope="module")
def extreme(tiny: LoadedModel) -> LoadedModel:
    """The tiny model with an MLP whose inputs and weights are all about the largest that there are."""
    import torch

    module = copy.deepcopy(tiny.module)
    mlp = module.backbone.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.weight.mul_(0.01)
        mlp.fc1.bias.fill_(3.0)
        signs = torch.randint(0, 2, (len(mlp.fc2.weight), 1), generator=torch.Generator().manual_seed(0)) * 2 - 1
        mlp.fc2.weight.copy_(signs * (0.002 + 0.00001 * mlp.fc2.weight))
    return LoadedModel(module=module, spec=tiny.spec, provenance=tiny.provenance)


@pytest.mark.parametrize("portable", [True, False])
def test_plain_openvino_computes_the_sums_exactly(
    portable: bool, extreme: LoadedModel, tiny_onnx: Path, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    recipe = for_portable(openvino_recipe()) if portable else openvino_recipe()
    model, details = quantize_openvino(tiny_onnx, calibration, recipe=recipe, module=extreme.module)
    assert max(np.abs(values).max() for values in integer_weights(model)) == (63 if portable else 127)
    assert details["coverage"]["QueryKey"] == "1 of 2"
    assert details["coverage"]["Convolution"] == ("0 of 1" if portable else "1 of 1")
    found, exact = (_in_openvino(model, held_out, **properties) for properties in ({}, IN_FLOAT))
    assert (_farthest(found, exact) < 1e-4) == (portable or int8_sums_are_exact())


def test_plain_openvino_computes_scores_exactly_whatever_a_tile_holds() -> None:
    if int8_sums_are_exact():
        pytest.skip("this processor adds 8-bit products exactly: there is nothing to get wrong")
    found = {limit: _scores(limit) for limit in (None, 63.0)}
    # Every query is 127 steps. Keys beyond the calibrated 63 steps are cut off there, or at 127 where nothing does it.
    assert found[63.0] == 64 * 127 * 63
    assert found[None] < 0.1 * 64 * 127 * 127


@pytest.mark.parametrize("portable", [True, False])
def test_plain_onnx_runtime_computes_the_sums_exactly(
    portable: bool, extreme: LoadedModel, calibration: Batches, held_out: NDArray[np.uint8], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from atlas_edge.runtimes.onnxruntime import EXACT_INT8_SUMS

    recipe = onnx_recipe().model_copy(update={"patch_embed": True})
    recipe, path = for_portable(recipe) if portable else recipe, tmp_path / "model.onnx"
    qdq.quantize_onnx(extreme.module, extreme.spec, calibration, path, recipe=recipe)
    assert max(np.abs(values).max() for values in qdq.integer_weights(path)) == (63 if portable else 127)
    found = []
    for exact in (False, True):
        options = onnxruntime.SessionOptions()
        if exact:
            options.add_session_config_entry(*EXACT_INT8_SUMS)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"tiles": held_out})[0])
    assert (_farthest(*found) < 1e-4) == (portable or int8_sums_are_exact())


def test_through_nncf_weights_have_seven_bits_and_attention_stays_in_float(
    tiny_onnx: Path, calibration: Batches
) -> None:
    recipe = for_portable(nncf_recipe().model_copy(update={"smooth_alphas": (-1.0,)}))
    model, details = quantize_openvino(tiny_onnx, calibration, recipe=recipe)
    check_portable(integer_weights(model))
    assert details["coverage"] == {"Convolution": "1 of 1", "MatMul": "12 of 16"}
    with pytest.raises(UsageError, match="weights of 8 bits, or of 7"):
        quantize_openvino(tiny_onnx, calibration, recipe=recipe.model_copy(update={"weight_bits": 4}))


@pytest.mark.parametrize("portable", [True, False])
def test_in_onnx_products_without_weights_stay_in_float(
    portable: bool, tiny: LoadedModel, tiny_onnx: Path, calibration: Batches, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt")
    recipe = Recipe(smooth_alphas=(-1.0,), attention=True)
    recipe = for_portable(recipe) if portable else recipe
    job = Job(model=tiny, graph=tiny_onnx, calibration=calibration, precision=Precision.INT8, recipe=recipe)
    quantized = backend_of(Target.ONNX).quantize(job, tmp_path)
    assert ("attention_products" in (quantized.quantization or {})) != portable


def test_a_weight_that_is_too_large_is_told() -> None:
    check_portable([np.array([[-64, 64]], np.int8)])
    with pytest.raises(InputError, match="a weight is 128, expected at most 64"):
        check_portable([np.array([3], np.int8), np.array([-128], np.int8)])


def test_the_recipe_says_it_and_the_option_makes_one(tmp_path: Path) -> None:
    assert run_app(app, ["recipe", "openvino", "--weight-bits", "7", "--out", str(tmp_path / "r.json"), "-q"]) == 0
    assert load_recipe(tmp_path / "r.json").portable and not openvino_recipe().portable
    asked = resolve(target="onnx", precision="int8", portable=True)
    assert asked.int8_recipe == onnx_recipe().model_copy(update={"name": "onnx-int8-portable", "weight_bits": 7})
    assert asked.output.name == "atlas2-demo-onnx-int8-portable"
    four = Recipe(weight_bits=4)
    assert for_portable(four) == four
    for target, precision in (("tensorrt", "int8"), ("openvino", "fp32")):
        with pytest.raises(UsageError, match="--portable is for --target onnx or openvino in --precision int8"):
            resolve(target=target, precision=precision, portable=True)


def _in_openvino(model: Any, tiles: NDArray[np.uint8], **properties: Any) -> NDArray[np.float32]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", **properties}
    result: NDArray[np.float32] = ov.Core().compile_model(model, "CPU", settings)(tiles)[0]
    return result


def _farthest(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest 1 - cosine."""
    dot = (found * expected).sum(1, dtype=np.float64)
    sizes = np.linalg.norm(found.astype(float), axis=1) * np.linalg.norm(expected.astype(float), axis=1)
    return float((1 - dot / sizes).max())


def _scores(limit: float | None) -> float:
    """Queries and keys far beyond their ranges, multiplied by plain OpenVINO: one of the sums over 64 channels."""
    write = Operators(VitGrids())
    shape = [1, 2, 32, 64]
    query, key = (write.op.parameter(shape, np.float32) for _ in range(2))
    symmetric = ActivationGrid(low=-128.0, high=127.0)
    keys = write.on_grid(key, ActivationGrid(low=-128.0, high=127.0, limit=limit))
    model = ov.Model([write.op.matmul(write.on_grid(query, symmetric), keys, False, True)], [query, key])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return float(compiled([np.full(shape, 1000, np.float32)] * 2)[0].flat[0])
