from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.folding.known import unfoldable_part
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.numerics.stages import unfittable_part
from atlas_edge.quantize.onnx.fakequant import embed
from atlas_edge.quantize.openvino.nncf import quantize_openvino
from atlas_edge.quantize.paths import path_sentence
from atlas_edge.quantize.recipe import Recipe, nncf_recipe, openvino_recipe
from atlas_edge.runtimes.openvino import OpenVinoEncoder

Batches = list[NDArray[np.uint8]]


def test_default_recipe_is_int8_and_close(
    tiny: LoadedModel, tiny_onnx: Path, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    model, report = quantize_openvino(tiny_onnx, calibration, recipe=openvino_recipe())
    assert report["coverage"]["Convolution"] == "1 of 1"
    result = OpenVinoEncoder(model, tiny.spec).encode(held_out)
    reference = embed(tiny.module, [held_out])
    assert not np.array_equal(result, reference)
    assert embedding_agreement(reference, result).cosine_worst > 0.995
    assert report["recipe"]["name"] == nncf_recipe().name
    assert "(transformer model type)" in report["method"]


def test_a_vision_transformer_is_quantized_layer_by_layer(
    tiny: LoadedModel, tiny_onnx: Path, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    recipe = openvino_recipe()
    model, report = quantize_openvino(tiny_onnx, calibration, recipe=recipe, module=tiny.module)
    assert report["coverage"] == {"Convolution": "1 of 1", "Linear": "8 of 12", "QueryKey": "1 of 2"}
    assert path_sentence(report) == "quantized layer by layer, recipe openvino-int8"
    assert set(report["layers"]["blocks.0.mlp.fc2"]) == {"smooth_alpha", "clip", "error"}
    result = OpenVinoEncoder(model, tiny.spec, batch=4).encode(held_out)
    through_nncf, _ = quantize_openvino(tiny_onnx, calibration, recipe=recipe)
    reference = embed(tiny.module, [held_out])
    plain = embedding_agreement(reference, OpenVinoEncoder(through_nncf, tiny.spec).encode(held_out))
    ours = embedding_agreement(reference, result)
    assert ours.cosine_worst > 0.999
    assert 1 - ours.cosine_median < 1 - plain.cosine_median


def test_a_network_of_convolutions_is_no_transformer_and_the_path_is_told(
    network: Callable[[str], LoadedModel],
    network_onnx: Callable[[str], Path],
    calibration: Batches,
    held_out: NDArray[np.uint8],
) -> None:
    model, graph = network("resnet"), network_onnx("resnet")
    recipe = openvino_recipe()
    quantized, report = quantize_openvino(graph, calibration, recipe=recipe, module=model.module)
    assert "(no model type)" in report["method"]
    sentence = path_sentence(report)
    assert sentence is not None and sentence.startswith("quantized through NNCF (not layer by layer, ")
    assert sentence.endswith(": ResNet is no plain vision transformer), recipe openvino-int8-nncf")
    found = OpenVinoEncoder(quantized, model.spec).encode(held_out)
    assert embedding_agreement(embed(model.module, [held_out]), found).cosine_worst > 0.999


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("swiglu", None),
        ("qk-norm", None),
        ("eva02", None),
        ("post-norm", "blocks.0 is a EvaBlockPostNorm"),
        ("swin", "SwinTransformer is no plain vision transformer"),
    ],
)
def test_the_part_that_keeps_a_network_from_the_better_path_is_named(
    name: str, part: str | None, network: Callable[[str], LoadedModel]
) -> None:
    module = network(name).module
    assert unfoldable_part(module) == unfittable_part(module) == part


def test_what_nncf_raises_is_named(tiny_onnx: Path, calibration: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported operation\nat line 3")

    monkeypatch.setattr("nncf.quantize", broken)
    with pytest.raises(InputError, match="NNCF cannot quantize the network: RuntimeError: unsupported operation\n"):
        quantize_openvino(tiny_onnx, calibration, recipe=nncf_recipe())


def test_alpha_is_chosen_and_layers_stay_out(tiny_traced: Path, calibration: Batches) -> None:
    recipe = Recipe(
        smooth_alphas=(-1.0, 0.5), exclude=("blocks.1.mlp.*",), patch_embed=False, bias_correction=False, choice_tiles=8
    )
    _, report = quantize_openvino(tiny_traced, calibration, recipe=recipe)
    assert report["coverage"] == {"Convolution": "0 of 1", "MatMul": "6 of 12"}
    errors = report["alpha_errors"]
    assert set(errors) == {"-1.0", "0.5"}
    assert errors[str(report["smooth_alpha"])] == min(errors.values())


def test_layers_with_equal_biases_are_told_apart(tiny: LoadedModel, calibration: Batches, tmp_path: Path) -> None:
    import copy

    import torch

    module = copy.deepcopy(tiny.module)
    # The exporter merges equal tensors: the biases of an untrained encoder, all zero, become one.
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    graph = export_onnx(module, tiny.spec, tmp_path / "untrained.onnx", fold=False)
    recipe = Recipe(smooth_alphas=(-1.0,), exclude=("blocks.1.mlp.fc1", "blocks.0.attn.proj"), attention=True)
    _, everything = quantize_openvino(graph, calibration, recipe=recipe.model_copy(update={"exclude": ()}))
    _, report = quantize_openvino(graph, calibration, recipe=recipe)
    # NNCF leaves two attention products alone by itself.
    assert everything["coverage"]["MatMul"] == "10 of 12"
    assert report["coverage"]["MatMul"] == "8 of 12"


def test_unknown_exclusion_is_refused(tiny_onnx: Path, calibration: Batches) -> None:
    with pytest.raises(UsageError, match="fc9"):
        quantize_openvino(tiny_onnx, calibration, recipe=Recipe(exclude=("*.fc9",)))


def test_no_tiles_is_refused(tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match="no calibration tiles"):
        quantize_openvino(tiny_onnx, [], recipe=Recipe())
