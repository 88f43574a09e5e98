from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.models.folding.vit import fold_vit
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.openvino.grids import choose_grids
from atlas_edge.quantize.openvino.nncf import quantize_openvino
from atlas_edge.quantize.recipe import openvino_recipe
from atlas_edge.quantize.tiles.augmentation import add_dab, add_glass, with_augmented
from atlas_edge.tiles import open_tiles
from atlas_edge.tiles.shifts import mix_stains, stain_densities

Tiles = NDArray[np.uint8]


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    source = open_tiles("synthetic:24")
    return np.stack([source.read(record) for record in source.records()])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_every_beginning_holds_its_share_and_all_tiles_stay(tiles: Tiles, share: float) -> None:
    batches = with_augmented([tiles[:8], tiles[8:16], tiles[16:]], share)
    assert {len(batch) for batch in batches[:-1]} == {8}
    mixed = np.concatenate(batches)
    own = np.array([any(np.array_equal(tile, other) for other in tiles) for tile in mixed])
    assert np.array_equal(mixed[own], tiles)
    assert len(mixed) == round(24 / (1 - share))
    for count in (12, 18, 24):
        assert abs((~own[:count]).mean() - share) < 1.5 / count + 0.05


def test_the_same_seed_draws_the_same_copies(tiles: Tiles) -> None:
    one, two, other = (np.concatenate(with_augmented([tiles], 0.5, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_without_a_share_or_tiles_nothing_changes(tiles: Tiles) -> None:
    assert np.array_equal(np.concatenate(with_augmented([tiles[:8], tiles[8:]], 0.0)), tiles)
    assert with_augmented([], 0.25) == []
    assert [len(batch) for batch in with_augmented([tiles[:1]], 0.25)] == [1]


def test_glass_covers_half_of_a_tile_or_more_and_leaves_the_rest(tiles: Tiles) -> None:
    for number, tile in enumerate(tiles[:6]):
        covered = add_glass(tile, np.random.default_rng(number))
        kept = (covered == tile).all(2)
        light = (covered > 190).all(2) & ~kept
        assert 0.05 < kept.mean() <= 0.52
        assert 0.45 <= light.mean() < 0.92
        assert covered[light].std(0).max() < 12


def test_dab_is_brown_and_the_rest_pale_blue(tiles: Tiles) -> None:
    for number, tile in enumerate(tiles[:6]):
        before, after = stain_densities(tile), stain_densities(add_dab(tile, np.random.default_rng(number)))
        assert after[..., 2].max() > before[..., 2].max()
        assert after[..., 1].mean() < before[..., 1].mean()
        assert after[..., 0].mean() < before[..., 0].mean()


def test_densities_are_mixed_back(tiles: Tiles) -> None:
    assert np.abs(mix_stains(stain_densities(tiles[0])).astype(int) - tiles[0]).max() <= 1


def test_ranges_grow_to_what_the_copies_show(tiny: LoadedModel, calibration: list[Tiles]) -> None:
    recipe = openvino_recipe().model_copy(update={"smooth_alphas": (-1.0,)})

    def ranges(share: float) -> dict[str, float]:
        grids = choose_grids(fold_vit(tiny.module), with_augmented(calibration, share), recipe)
        return {name: grid.high - grid.low for name, grid in grids.activations.items() if "attn.q" not in name}

    plain, wide = ranges(0.0), ranges(0.25)
    assert all(wide[name] >= plain[name] * 0.999 for name in plain)
    assert any(wide[name] > plain[name] * 1.05 for name in plain)


def test_the_recipe_says_how_many(
    tiny: LoadedModel, tiny_onnx: Path, calibration: list[Tiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def record(folded: object, batches: list[Tiles], recipe: object) -> tuple[None, dict[str, object]]:
        seen.append(sum(map(len, batches)))
        return None, {}

    monkeypatch.setattr("atlas_edge.quantize.openvino.graph.quantize_vit", record)
    recipe = openvino_recipe()
    count = sum(map(len, calibration))
    for share in (0.0, 0.5):
        changed = recipe.model_copy(update={"augmented_share": share})
        quantize_openvino(tiny_onnx, calibration, recipe=changed, module=tiny.module)
    assert seen == [count, 2 * count]
