import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.numerics.blocks import FitOptions, fit_blocks
from atlas_edge.quantize.numerics.stages import stages
from atlas_edge.quantize.onnx.fakequant import cosine_error, embed, fake_quantize
from atlas_edge.quantize.onnx.qkv_bias import join_biases
from atlas_edge.quantize.recipe import Calibrator, Recipe

Batches = list[NDArray[np.uint8]]
NAMES = [f"backbone.blocks.{b}.{n}" for b in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def test_smoothing_alone_changes_nothing(tiny: LoadedModel, held_out: NDArray[np.uint8]) -> None:
    module = copy.deepcopy(tiny.module)
    assert _smoothed(module) == {name for name in NAMES if not name.endswith("fc2")}
    block, before = module.get_submodule("backbone.blocks.0"), tiny.module.get_submodule("backbone.blocks.0")
    assert not np.allclose(block.norm1.weight.detach(), before.norm1.weight.detach(), rtol=0.01)
    np.testing.assert_allclose(embed(module, [held_out]), embed(tiny.module, [held_out]), atol=2e-5)


def _smoothed(module: torch.nn.Module) -> set[str]:
    """Move a scale wherever one can be moved at no cost; the names of the Linears that it went into."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        reads = [read for stage in stages(module) for read in (*stage.first, stage.second) if read.divide is not None]
        for read in reads:
            read.smooth(torch.rand(read.layer.in_features, generator=random) + 0.5)
    return {name for read in reads for name in read.layers}


@pytest.mark.parametrize("name", ["swiglu", "qk-norm", "dinov3", "eva02", "eva02-clip"])
def test_other_parts_are_smoothed_at_no_cost_and_fitted(
    name: str, network: Callable[[str], LoadedModel], calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    module = join_biases(copy.deepcopy(network(name).module))
    names = [linear for stage in stages(module) for linear in stage.names]
    in_blocks = [n for n, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert names == in_blocks
    reference = embed(module, [held_out])
    smoothed = copy.deepcopy(module)
    # Only a plain MLP's activation stands in the way.
    assert set(names) - _smoothed(smoothed) == {n for n in names if n.endswith("fc2") and name in ("qk-norm", "dinov3")}
    np.testing.assert_allclose(embed(smoothed, [held_out]), reference, atol=2e-5)
    nearest = Recipe(smooth_alphas=(0.65,), patch_embed=False)
    fitted = nearest.model_copy(update={"weights": "fitted", "calibrator": "mse"})
    errors = [
        cosine_error(reference, embed(fake_quantize(module, calibration, recipe), [held_out]))
        for recipe in (fitted, nearest)
    ]
    assert 0 < errors[0] < errors[1]


@pytest.mark.parametrize(("bits", "share"), [(8, 0.9), (4, 0.5)])
def test_fitted_weights_lie_on_their_grid_and_beat_the_nearest(
    tiny: LoadedModel, calibration: Batches, held_out: NDArray[np.uint8], bits: int, share: float
) -> None:
    reference = embed(tiny.module, [held_out])
    nearest = Recipe(smooth_alphas=(0.65,), weight_bits=bits, patch_embed=False)
    fitted = nearest.model_copy(update={"weights": "fitted", "calibrator": "mse"})
    quantized = fake_quantize(tiny.module, calibration, fitted)
    errors = [
        cosine_error(reference, embed(candidate, [held_out]))
        for candidate in (quantized, fake_quantize(tiny.module, calibration, nearest))
    ]
    assert 0 < errors[0] < share * errors[1]
    for name in NAMES:
        layer = quantized.get_submodule(name)
        integers = layer.weight.detach() / layer.weight_quantizer.amax * (2 ** (bits - 1) - 1)
        np.testing.assert_allclose(integers, integers.round(), atol=1e-2)


@pytest.mark.parametrize("calibrator", ["percentile", "entropy"])
def test_every_calibrator_clips_as_it_says(tiny: LoadedModel, calibration: Batches, calibrator: Calibrator) -> None:
    tiles = np.concatenate(calibration)
    widest = fit_blocks(tiny.module, tiles, FitOptions(alphas=(-1.0,), calibrator="max"))[1]
    clipped = fit_blocks(tiny.module, tiles, FitOptions(alphas=(-1.0,), calibrator=calibrator))[1]
    assert all(clipped[name].input_amax <= widest[name].input_amax for name in NAMES)
    assert any(clipped[name].input_amax < 0.99 * widest[name].input_amax for name in NAMES)


def test_bias_correction_can_be_left_out(tiny: LoadedModel, calibration: Batches) -> None:
    tiles = np.concatenate(calibration)
    before = tiny.module.get_submodule(NAMES[2]).bias.detach()
    left, _ = fit_blocks(tiny.module, tiles, FitOptions(bias_correction=False))
    corrected, _ = fit_blocks(tiny.module, tiles, FitOptions())
    assert np.array_equal(left.get_submodule(NAMES[2]).bias.detach(), before)
    assert not np.array_equal(corrected.get_submodule(NAMES[2]).bias.detach(), before)


def test_an_excluded_layer_is_not_rounded(tiny: LoadedModel, calibration: Batches) -> None:
    recipe = Recipe(weights="fitted", exclude=("blocks.1.mlp.fc2",), patch_embed=False)
    quantized = fake_quantize(tiny.module, calibration, recipe)
    layer = quantized.get_submodule("backbone.blocks.1.mlp.fc2")
    assert not layer.weight_quantizer.is_enabled
    assert embedding_agreement(embed(tiny.module, calibration), embed(quantized, calibration)).cosine_worst > 0.99


def test_blocks_and_other_layers_see_all_calibration_tiles(
    tiny: LoadedModel, calibration: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}

    def fitted(module: object, tiles: NDArray[np.uint8], _: object) -> tuple[object, dict[str, object]]:
        seen["blocks"] = len(tiles)
        return module, {}

    def statistics(_: object, batches: Batches, names: list[str]) -> dict[str, object]:
        seen["others"] = sum(map(len, batches))
        assert "backbone.patch_embed.proj" in names
        return {}

    monkeypatch.setattr("atlas_edge.quantize.onnx.fakequant.fit_blocks", fitted)
    monkeypatch.setattr("atlas_edge.quantize.onnx.fakequant.input_statistics", statistics)
    fake_quantize(tiny.module, calibration, Recipe(weights="fitted", augmented_share=0.2, smooth_alphas=(0.5, 0.7)))
    # 40 tiles and a copy for every four of them; none is held out, as blocks choose their strengths themselves.
    assert seen == {"blocks": 50, "others": 50}
