"""Networks with parts that plain vision transformers lack: in INT8 and FP8, or refused with the part's name."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.export.engine.graphs import engine_graphs
from atlas_edge.export.graph.rules import check_graph
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.quantize.onnx.fakequant import cosine_error, embed, fake_quantize, insert_quantizers
from atlas_edge.quantize.onnx.qdq import quantize_onnx
from atlas_edge.quantize.onnx.qkv_bias import join_biases, separate_biases
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.quantize.sensitivity.toggles import ToggledEncoder
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.spec import Precision

Network = Callable[[str], LoadedModel]
Batches = list[NDArray[np.uint8]]
GRAPHS = {
    "eva02": Precision.INT8,  # query, key and value biases beside the layer
    "swin": Precision.INT8,  # windows, a pooling layer at the end
    "resnet": Precision.INT8,  # convolutions alone
    "dinov3": Precision.INT8,  # rotary positions
    "swiglu": Precision.FP8,  # gated MLP, with weights near zero
}


def _off(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean 1 - cosine without what all embeddings have in common."""
    return cosine_error(reference - reference.mean(0), found - reference.mean(0))


@pytest.fixture(scope="module")
def graphs(
    network: Network,
    network_onnx: Callable[[str], Path],
    calibration: Batches,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Quantized]:
    made = {}
    for name, precision in GRAPHS.items():
        model, scratch = network(name), tmp_path_factory.mktemp(name)
        job = Job(model=model, graph=network_onnx(name), calibration=calibration, precision=precision)
        made[name] = engine_graphs(job, scratch)
    return made


@pytest.mark.parametrize(("name", "precision"), GRAPHS.items())
def test_a_graph_for_engines_is_quantized_and_close(
    name: str, precision: Precision, graphs: dict[str, Quantized], network: Network, held_out: NDArray[np.uint8]
) -> None:
    check_graph(graphs[name].model, precision=precision)
    model = network(name)
    found = OnnxEncoder(graphs[name].model, model.spec).encode(held_out)
    assert 0 < _off(embed(model.module, [held_out]), found) < 0.02
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network_ = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network_, logger)
    assert parser.parse(graphs[name].model.read_bytes()), [
        str(parser.get_error(index)) for index in range(parser.num_errors)
    ]


def test_all_convolutions_but_the_one_that_reads_pixels_are_stored_in_int8(graphs: dict[str, Quantized]) -> None:
    graph = onnx.load(graphs["resnet"].model).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    stored = [
        kinds[producers[node.input[1]].input[0]]
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in producers
    ]
    assert len([node for node in graph.node if node.op_type == "Conv"]) == len(stored) + 1
    assert set(stored) == {onnx.TensorProto.INT8}
    assert graphs["resnet"].quantization is not None
    assert graphs["resnet"].quantization["path_reason"] == "ResNet is no plain vision transformer"
    assert graphs["resnet"].quantization["coverage"] == {"Conv": f"{len(stored)} of {len(stored) + 1}"}


def test_a_network_of_convolutions_has_no_fp8(
    network: Network, network_onnx: Callable[[str], Path], calibration: Batches, tmp_path: Path
) -> None:
    model = network("resnet")
    with pytest.raises(InputError, match="no matrix product that fp8 could quantize"):
        job = Job(model=model, graph=network_onnx("resnet"), calibration=calibration, precision=Precision.FP8)
        engine_graphs(job, tmp_path)


@pytest.mark.parametrize("name", ["beit", "eva02", "dinov3-qkv-bias"])
def test_joined_biases_change_nothing(name: str, network: Network, held_out: NDArray[np.uint8]) -> None:
    module = network(name).module
    assert separate_biases(module) == [f"backbone.blocks.{number}.attn.qkv" for number in (0, 1)]
    joined = join_biases(copy.deepcopy(module))
    assert separate_biases(joined) == []
    np.testing.assert_allclose(embed(joined, [held_out]), embed(module, [held_out]), atol=1e-6)


def test_every_layer_has_a_switch_where_biases_lie_beside_it(network: Network, calibration: Batches) -> None:
    encoder = ToggledEncoder(network("eva02").module, calibration[0], Recipe())
    assert "blocks.0.attn.qkv" in encoder.layers


def test_other_blocks_are_rounded_to_the_nearest(network: Network, calibration: Batches) -> None:
    module = network("post-norm").module
    quantized = fake_quantize(module, calibration, Recipe(weights="fitted", smooth_alphas=(-1.0,), patch_embed=False))
    layer = quantized.get_submodule("backbone.blocks.0.mlp.fc1")
    # Fitting would have changed it; rounding comes with the quantizer.
    assert torch.equal(layer.weight, module.get_submodule("backbone.blocks.0.mlp.fc1").weight)
    assert layer.weight_quantizer.is_enabled and len(torch.unique(layer.weight_quantizer(layer.weight)[0])) <= 255


def test_a_layer_that_is_never_called_is_named(tiny: LoadedModel, calibration: Batches) -> None:
    module = copy.deepcopy(tiny.module)
    block = module.get_submodule("backbone.blocks.1.mlp")
    block.gate = torch.nn.Linear(4, 4)
    recipe = Recipe(patch_embed=False)
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.gate is not called") as caught:
        fake_quantize(module, calibration, recipe)
    assert "--exclude 'blocks.1.mlp.gate'" in str(caught.value.hint)
    fake_quantize(module, calibration, recipe.model_copy(update={"exclude": ("blocks.1.mlp.gate",)}))


def test_a_recipe_that_leaves_nothing_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(UsageError, match="leaves no layer of VisionTransformer to quantize"):
        insert_quantizers(tiny.module, Recipe(exclude=("*",)))


def test_what_an_exporter_raises_is_named(
    tiny: LoadedModel, calibration: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("aten::unheard_of")

    monkeypatch.setattr("atlas_edge.quantize.onnx.qdq.export_onnx", broken)
    with pytest.raises(InputError, match=r"VisionTransformer cannot be written .* KeyError: 'aten::unheard_of'"):
        quantize_onnx(tiny.module, tiny.spec, calibration, tmp_path / "m.onnx", recipe=Recipe(smooth_alphas=(-1.0,)))
    with pytest.raises(OSError, match="full"), foreign_errors("x"):
        raise OSError("disk full")
