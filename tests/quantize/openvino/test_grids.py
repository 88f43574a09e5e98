"""Grids of a folded vision transformer, and the OpenVINO graph that they go into."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folding_kinds import KINDS, encoder_of
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.errors import UsageError
from atlas_edge.models.folding.vit import FoldedVit, fold_vit
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.quantize.numerics.moments import Inputs
from atlas_edge.quantize.numerics.rounding import fake_round, grid_ends, smooth_scale, symmetric_ends
from atlas_edge.quantize.onnx.fakequant import embed
from atlas_edge.quantize.openvino.graph import build_openvino
from atlas_edge.quantize.openvino.grids import VitGrids, choose_grids
from atlas_edge.quantize.openvino.nncf import quantize_openvino
from atlas_edge.quantize.paths import LAYER_WISE
from atlas_edge.quantize.recipe import Recipe, openvino_recipe
from atlas_edge.runtimes.int8_sums import int8_properties
from atlas_edge.runtimes.openvino import OpenVinoEncoder
from atlas_edge.spec import Pooling

Batches = list[NDArray[np.uint8]]
RECIPE = Recipe(smooth_alphas=(0.5, 0.85), calibrator="mse", weights="fitted", attention=True)


@pytest.fixture
def folded(tiny: LoadedModel) -> FoldedVit:
    result = fold_vit(tiny.module)
    assert result is not None
    return result


@pytest.mark.parametrize("pooling", ["cls", "avg", "cls+mean"])
def test_the_graph_without_grids_computes_the_encoder(
    pooling: Pooling, tiny_model: object, held_out: NDArray[np.uint8]
) -> None:
    model = load_model(str(tiny_model), pooling=pooling)
    folded = fold_vit(model.module)
    assert folded is not None
    found = OpenVinoEncoder(build_openvino(folded, VitGrids(), tile_px=32), model.spec).encode(held_out)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(held_out)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_every_kind_computes_the_encoder(kind: str, held_out: NDArray[np.uint8]) -> None:
    module, spec = encoder_of(kind)
    folded = fold_vit(module)
    assert folded is not None
    found = OpenVinoEncoder(build_openvino(folded, VitGrids(), tile_px=32), spec).encode(held_out)
    expected = embed(module, [held_out])
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_quantized_whole_and_close(kind: str, calibration: Batches, held_out: NDArray[np.uint8]) -> None:
    module, spec = encoder_of(kind)
    model, report = quantize_openvino(Path("no graph"), calibration, recipe=openvino_recipe(), module=module)
    assert report["path"] == LAYER_WISE
    folded = fold_vit(module)
    assert folded is not None
    linears, last = sum(isinstance(part, torch.nn.Linear) for part in folded.modules()), folded.blocks[-1]
    # Query, projection and MLP of one token a tile.
    alone = 3 + len(last.mlp.first) if last.cls_only else 0
    assert report["coverage"] == {
        "Convolution": "1 of 1",
        "Linear": f"{linears - alone} of {linears}",
        "QueryKey": f"{2 - last.cls_only} of 2",
    }
    agreement = embedding_agreement(embed(module, [held_out]), OpenVinoEncoder(model, spec).encode(held_out))
    assert 0.9995 < agreement.cosine_worst < 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_choosing_moves_changes_nothing_at_full_precision(
    kind: str, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    module, _ = encoder_of(kind)
    folded = fold_vit(module)
    assert folded is not None
    before = copy.deepcopy(folded.state_dict())
    grids = choose_grids(folded, calibration, RECIPE)
    moved = {name for name, values in folded.state_dict().items() if not torch.equal(values, before[name])}
    attention, mlp = folded.blocks[0].attn, folded.blocks[0].mlp
    # Each where it is exact, and nowhere else.
    assert ("blocks.0.attn.q.weight" in moved) is (attention.q_norm is None)
    assert ("blocks.0.attn.q_norm.weight" in moved) is (attention.q_norm is not None)
    assert ("blocks.0.attn.v.bias" in moved) is (attention.inner_eps is None)
    assert ("blocks.0.mlp.fc1_x.weight" in moved) is (mlp.linear_in is not None)
    assert (grids.activations["blocks.0.mlp.fc2"].scale is None) is (mlp.linear_in is not None)
    expected = embed(module, [held_out])
    with torch.inference_mode():
        found = folded(torch.from_numpy(held_out)).numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("kind", "layer", "holds", "count"),
    [("gated", "FullyConnected", "Swish", 2), ("turned", "RoPE", "Add", 4), ("normed", "MVN", "MVN", 9)],
)
def test_the_plugin_fuses_what_a_kind_adds(kind: str, layer: str, holds: str, count: int, calibration: Batches) -> None:
    folded = fold_vit(encoder_of(kind)[0])
    assert folded is not None
    ran = _executed(build_openvino(folded, choose_grids(folded, calibration, RECIPE), tile_px=32))
    assert len([names for kind_of, _, names in ran if kind_of == layer and holds in names]) == count


def test_centring_and_balancing_change_nothing_at_full_precision(
    folded: FoldedVit, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    before = copy.deepcopy(folded)
    choose_grids(folded, calibration, RECIPE)
    assert not torch.equal(before.blocks[0].attn.k.bias, folded.blocks[0].attn.k.bias)
    assert not torch.equal(before.blocks[0].attn.q.weight, folded.blocks[0].attn.q.weight)
    tiles = torch.from_numpy(held_out)
    with torch.inference_mode():
        torch.testing.assert_close(folded(tiles), before(tiles), rtol=1e-4, atol=1e-4)


def test_grids_hold_zero_and_every_calibration_value(folded: FoldedVit, calibration: Batches) -> None:
    grids = choose_grids(folded, calibration, RECIPE.model_copy(update={"calibrator": "max"}))
    read: dict[str, torch.Tensor] = {}
    for name, layer in folded.named_modules():
        if name in grids.activations:
            layer.register_forward_pre_hook(lambda _, inputs, name=name: read.__setitem__(name, inputs[0]))
    with torch.inference_mode():
        folded(torch.from_numpy(np.concatenate(calibration)))
    assert len(read) == 10
    for name, values in read.items():
        grid = grids.activations[name]
        scaled = values if grid.scale is None else values / torch.from_numpy(grid.scale)
        step = (grid.high - grid.low) / 255
        assert float((fake_round(scaled, grid.low, grid.high) - scaled).abs().max()) <= 0.51 * step, name
        assert (grid.low / step) == pytest.approx(round(grid.low / step), abs=1e-3)


def test_weights_lie_on_their_grid_and_gptq_beats_the_nearest(
    folded: FoldedVit, calibration: Batches, held_out: NDArray[np.uint8]
) -> None:
    fitted = choose_grids(copy.deepcopy(folded), calibration, RECIPE)
    again = copy.deepcopy(folded)
    nearest = choose_grids(again, calibration, RECIPE.model_copy(update={"weights": "nearest"}))
    choose_grids(folded, calibration, RECIPE)
    shared = [name for name in fitted.weights if name != "patch_embed.proj"]
    assert len(shared) == 8
    for name in shared:
        grid, layer = fitted.weights[name], folded.get_submodule(name)
        scale = fitted.activations[name].scale
        weight = layer.weight.detach().numpy() * (1 if scale is None else scale)
        # GPTQ moves a weight to make up for others, by a few steps at most.
        assert np.abs(grid.values * grid.step[:, None] - weight).max() < 8 * grid.step.max()
        assert grid.values.min() >= -127
    # On tiles that no weight was fitted to: GPTQ minimises the error on those that it was.
    off = {name: _output_error(folded, grids, held_out) for name, grids in (("gptq", fitted), ("near", nearest))}
    assert off["gptq"] < 0.9 * off["near"]


def _output_error(changed: FoldedVit, grids: VitGrids, tiles: NDArray[np.uint8]) -> float:
    """Mean error of the Linears' outputs with their weights on the grid, relative to the outputs' variance."""
    errors = []

    def compare(name: str, layer: torch.nn.Linear, values: torch.Tensor) -> None:
        grid, scale = grids.weights[name], grids.activations[name].scale
        weight = torch.from_numpy(grid.values * grid.step[:, None]) / (1 if scale is None else torch.from_numpy(scale))
        wanted = values.flatten(0, 1) @ layer.weight.T
        wrong = values.flatten(0, 1) @ weight.T - wanted
        errors.append(float((wrong - wrong.mean(0)).square().mean() / wanted.var()))

    handles = [
        changed.get_submodule(name).register_forward_pre_hook(
            lambda layer, inputs, name=name: compare(name, layer, inputs[0])
        )
        for name in grids.activations
        if name in grids.weights
    ]
    with torch.inference_mode():
        changed(torch.from_numpy(tiles))
    for handle in handles:
        handle.remove()
    return float(np.mean(errors))


@pytest.mark.parametrize("count", [3, 40, 600])
def test_how_cls_tokens_weigh_does_not_depend_on_the_number_of_tiles(count: int) -> None:
    inputs = Inputs()
    tokens = torch.zeros(count, 17, 4)
    tokens[:, 0] = 1
    inputs.add(tokens)
    assert inputs.choosing.mean() == 0.25


def test_what_one_token_reads_stays_in_floating_point(folded: FoldedVit, calibration: Batches) -> None:
    grids = choose_grids(folded, calibration, RECIPE)
    alone = {f"blocks.1.{leaf}" for leaf in ("attn.q", "attn.proj", "mlp.fc1", "mlp.fc2")}
    linears = {name for name, layer in folded.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert linears - set(grids.weights) == alone


def test_exclusions_take_names_of_timm_and_leave_layers_in_floating_point(
    folded: FoldedVit, calibration: Batches
) -> None:
    recipe = RECIPE.model_copy(update={"exclude": ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"), "patch_embed": False})
    grids = choose_grids(folded, calibration, recipe)
    assert grids.coverage(folded) == {"Convolution": "0 of 1", "Linear": "5 of 12", "QueryKey": "0 of 2"}
    assert not {"blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v", "blocks.1.mlp.fc2"} & set(grids.weights)
    with pytest.raises(UsageError, match="fc9"):
        choose_grids(folded, calibration, RECIPE.model_copy(update={"exclude": ("*.fc9",)}))


@pytest.mark.parametrize(("excluded", "smoothed"), [("fc1", True), ("fc1_x", True), ("fc2", False)])
def test_exclusions_know_both_names_of_a_gated_mlp(excluded: str, smoothed: bool, calibration: Batches) -> None:
    folded = fold_vit(encoder_of("gated")[0])
    assert folded is not None
    before = folded.blocks[0].mlp.fc1_x.weight.clone()
    recipe = RECIPE.model_copy(update={"exclude": (f"blocks.0.mlp.{excluded}",)})
    grids = choose_grids(folded, calibration, recipe)
    left = {"fc1": {"fc1_g", "fc1_x"}}.get(excluded, {excluded})
    assert {f"blocks.0.mlp.{leaf}" for leaf in ("fc1_g", "fc1_x", "fc2")} - set(grids.weights) == {
        f"blocks.0.mlp.{leaf}" for leaf in left
    }
    assert torch.equal(before, folded.blocks[0].mlp.fc1_x.weight) is not smoothed


def test_a_calibrator_that_is_not_there_is_refused(folded: FoldedVit, calibration: Batches) -> None:
    with pytest.raises(UsageError, match="percentile"):
        choose_grids(folded, calibration, RECIPE.model_copy(update={"calibrator": "percentile"}))


def test_grid_ends_by_hand() -> None:
    # 0 to 255 is its own grid; -1 to 2 takes steps of 3/255, 85 of them below zero.
    assert grid_ends(0.0, 255.0) == (0.0, 255.0)
    assert grid_ends(-1.0, 2.0) == pytest.approx((-1.0, 2.0))
    # All positive values: the grid still begins at zero.
    assert grid_ends(3.0, 5.0) == pytest.approx((0.0, 5.0))


def test_symmetric_ends_by_hand() -> None:
    # Steps of 1/127: -128 to 127 of them, zero is the integer zero.
    assert symmetric_ends(1.0) == pytest.approx((-128 / 127, 1.0))


def test_query_times_key_runs_in_int8(folded: FoldedVit, calibration: Batches) -> None:
    if int8_properties():
        pytest.skip("this processor has no exact 8-bit products: OpenVINO computes INT8 in floating point here")
    ran = _executed(build_openvino(folded, choose_grids(folded, calibration, RECIPE), tile_px=32))
    precisions = {precision for _, precision, names in ran if "blocks.0.attn.scores" in names.split(",")}
    assert precisions and precisions <= {"i8", "u8"}


def _executed(model: Any) -> list[tuple[str, str, str]]:
    """Kind, precision and original names of every operator that the plugin runs."""
    import openvino as ov

    model.reshape([4, 32, 32, 3])
    executed = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    keys = ("layerType", "runtimePrecision", "originalLayersNames")
    infos = [node.get_rt_info() for node in executed.get_ops()]
    return [tuple(str(info[key].astype(str)) for key in keys) for info in infos if all(key in info for key in keys)]


def test_smoothing_moves_the_outlier_channel_to_the_weights() -> None:
    peak, weight = torch.tensor([1.0, 100.0]), torch.ones(3, 2)
    half = smooth_scale(peak, weight, 0.5)
    # sqrt(1), sqrt(100), divided by their geometric mean sqrt(10).
    torch.testing.assert_close(half, torch.tensor([1.0, 10.0]) / 10**0.5)
    assert torch.equal(smooth_scale(peak, weight, -1), torch.ones(2))
