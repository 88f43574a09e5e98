"""Layers in INT8 one by one: what a switch does, and that half the work gives the whole answer."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.onnx.fakequant import cosine_error, embed
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.quantize.sensitivity.measure import measure_sensitivity
from atlas_edge.quantize.sensitivity.toggles import ToggledEncoder

Batches = list[NDArray[np.uint8]]
EVERYTHING = Recipe(name="everything", attention=True, smooth_alphas=(0.5,))


@pytest.fixture(scope="module")
def toggled(tiny: LoadedModel, calibration: Batches) -> ToggledEncoder:
    return ToggledEncoder(tiny.module, np.concatenate(calibration), EVERYTHING)


def test_every_layer_has_a_switch(toggled: ToggledEncoder, tiny: LoadedModel, held_out: NDArray[np.uint8]) -> None:
    block = ("attn.qkv", "attn.scores", "attn.values", "attn.proj", "mlp.fc1", "mlp.fc2")
    wanted = ["patch_embed.proj", *(f"blocks.{n}.{part}" for n in (0, 1) for part in block)]
    assert sorted(toggled.layers) == sorted(wanted)
    # 16 patches of 8 x 8 x 3 pixels, 18 tokens of width 64 in 2 heads.
    assert toggled.work["patch_embed.proj"] == 16 * 64 * 8 * 8 * 3
    assert toggled.work["blocks.0.mlp.fc1"] == 18 * 64 * 256
    assert toggled.work["blocks.0.attn.scores"] == 18 * 18 * 64
    toggled.switch(())
    full = embed(tiny.module, [held_out])
    np.testing.assert_allclose(toggled.embed(held_out), full, rtol=1e-4, atol=1e-5)
    for layer in toggled.layers:
        toggled.switch((layer,))
        assert cosine_error(full, toggled.embed(held_out)) > 1e-9, layer


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_switched_linear_has_255_levels(tiny: LoadedModel, calibration: Batches, symmetric: bool) -> None:
    plain = Recipe(smooth_alphas=(-1.0,))
    encoder = ToggledEncoder(tiny.module, np.concatenate(calibration), plain, symmetric=symmetric)
    layer = encoder.module.get_submodule("backbone.blocks.0.mlp.fc2")
    seen: list[torch.Tensor] = []
    # The encoder's own hook was registered first: this one sees what it lets through.
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    encoder.switch(("blocks.0.mlp.fc2",))
    encoder.embed(calibration[0])
    assert 20 < len(torch.unique(seen[0])) <= (255 if symmetric else 256)
    weight = layer.weight.detach()
    assert max(len(torch.unique(row)) for row in weight) <= 255


def test_half_the_work_gives_the_whole_answer(toggled: ToggledEncoder, held_out: NDArray[np.uint8]) -> None:
    found = measure_sensitivity(toggled, held_out, recipe="everything")
    toggled.switch(())
    reference = toggled.embed(held_out)
    toggled.switch(toggled.layers)
    assert found.everything == pytest.approx(cosine_error(reference, toggled.embed(held_out)), rel=1e-3)
    for layer in ("patch_embed.proj", "blocks.0.mlp.fc1", "blocks.1.attn.values", "blocks.1.mlp.fc2"):
        entry = next(entry for entry in found.layers if entry.layer == layer)
        toggled.switch((layer,))
        assert entry.alone == pytest.approx(cosine_error(reference, toggled.embed(held_out)), rel=1e-2, abs=1e-7)
        toggled.switch(name for name in toggled.layers if name != layer)
        assert entry.without == pytest.approx(cosine_error(reference, toggled.embed(held_out)), rel=1e-2, abs=1e-7)
    assert sum(entry.work for entry in found.layers) == pytest.approx(1)


def test_a_layer_with_an_outlier_is_the_most_sensitive(
    tiny: LoadedModel, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    import copy

    module = copy.deepcopy(tiny.module)
    norm = module.get_submodule("backbone.blocks.1.norm2")
    with torch.no_grad():
        # One channel of the MLP's input a thousand times as large, and its weights as much smaller: exact in float32,
        # ruinous for one scale per tensor.
        norm.weight[0] *= 1000
        norm.bias[0] *= 1000
        module.get_submodule("backbone.blocks.1.mlp.fc1").weight[:, 0] /= 1000
    encoder = ToggledEncoder(module, np.concatenate(calibration), Recipe(smooth_alphas=(-1.0,), attention=True))
    found = measure_sensitivity(encoder, held_out, recipe="plain", without=False)
    assert max(found.gains(), key=lambda layer: found.gains()[layer]) == "blocks.1.mlp.fc1"
    assert found.layers[0].without is None
