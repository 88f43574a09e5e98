import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.finetune.held_out import part_tiles
from atlas_edge.quantize.finetune.qad import CHECKPOINT, QadOptions, QadResult, distill_quantized
from atlas_edge.quantize.recipe import Recipe

RECIPE = Recipe(name="w3", weight_bits=3, smooth_alphas=(-1.0,), patch_embed=False)
OPTIONS = QadOptions(steps=12, batch=8, held_out=16, warmup=2, save_every=3, weight_lr=1e-3, other_lr=1e-3)


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(3).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(scope="module")
def trained(tiny: LoadedModel, tiles: NDArray[np.uint8]) -> QadResult:
    return distill_quantized(tiny.module, tiles, recipe=RECIPE, options=OPTIONS)


def test_distillation_halves_the_error_of_3_bit_weights(trained: QadResult) -> None:
    assert trained.error_after < 0.5 * trained.error_before
    assert len(trained.losses) == 12


def test_a_killed_run_goes_on_to_the_same_weights(
    tiny: LoadedModel, tiles: NDArray[np.uint8], trained: QadResult, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, _: float) -> None:
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        distill_quantized(tiny.module, tiles, recipe=RECIPE, options=OPTIONS, folder=tmp_path, progress=kill)
    resumed = distill_quantized(tiny.module, tiles, recipe=RECIPE, options=OPTIONS, folder=tmp_path)
    assert resumed.resumed_at == 6
    assert resumed.error_before == trained.error_before
    for (name, found), wanted in zip(resumed.module.named_parameters(), trained.module.parameters(), strict=True):
        np.testing.assert_allclose(found.detach(), wanted.detach(), atol=1e-6, err_msg=name)


def test_a_state_of_another_run_is_refused(tiny: LoadedModel, tiles: NDArray[np.uint8], tmp_path: Path) -> None:
    short = QadOptions(steps=1, batch=8, held_out=16)
    with pytest.raises(UsageError, match="--steps 0 trains nothing"):
        distill_quantized(tiny.module, tiles, recipe=RECIPE, options=QadOptions(steps=0))
    with pytest.raises(UsageError, match="a learning rate of 0"):
        distill_quantized(tiny.module, tiles, recipe=RECIPE, options=QadOptions(weight_lr=0.0))
    with pytest.raises(UsageError, match="a learning rate of 2 for ranges"):
        distill_quantized(tiny.module, tiles, recipe=RECIPE, options=QadOptions(range_lr=2.0))
    distill_quantized(tiny.module, tiles, recipe=RECIPE, options=short, folder=tmp_path)
    trained_again = copy.deepcopy(tiny.module)
    trained_again.get_submodule("backbone.norm").bias.data += 0.01
    for module, shown in ((tiny.module, tiles[::-1]), (trained_again, tiles)):
        with pytest.raises(UsageError, match="another model, other tiles, recipe or options"):
            distill_quantized(module, shown, recipe=RECIPE, options=short, folder=tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        distill_quantized(tiny.module, tiles, recipe=RECIPE, options=short, folder=tmp_path)


def test_too_few_tiles_are_refused(tiny: LoadedModel, tiles: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="10 tiles are too few"):
        distill_quantized(tiny.module, tiles[:10], recipe=RECIPE, options=OPTIONS)


def test_tiles_that_judge_are_of_slides_that_none_is_trained_on() -> None:
    slides = [f"slide-{number % 6}" for number in range(60)]
    parting = part_tiles(60, slides, held_out=16, batch=8, seed=0)
    assert len(parting.held) == 16 and len(parting.trained) == 40 and parting.by == "slide"
    assert not {slides[index] for index in parting.trained} & {slides[index] for index in parting.held}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("sizes", "trained", "by"),
    [
        ((200, 40), 200, "slide"),
        ((100, 200, 10, 30), 300, "slide"),
        ((40, 260, 40), 300, "slide"),
        ((270, 30), 268, "tile"),  # the smaller one is too small to judge, the larger one is nearly everything
        ((30, 30, 30), 58, "tile"),
    ],
)
def test_most_tiles_train_whatever_the_sizes_of_slides_and_the_seed(
    sizes: tuple[int, ...], trained: int, by: str, seed: int
) -> None:
    slides = [f"slide-{number}" for number, size in enumerate(sizes) for _ in range(size)]
    parting = part_tiles(len(slides), slides, held_out=32, batch=8, seed=seed)
    assert len(parting.trained) == trained and len(parting.held) == 32 and parting.by == by
    assert not set(parting.trained.tolist()) & set(parting.held.tolist())


def test_a_network_without_tokens_is_refused(network: Callable[[str], LoadedModel], tiles: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"ResNet computes features of shape \(1, 48, 1, 1\)"):
        distill_quantized(network("resnet").module, tiles, recipe=RECIPE, options=OPTIONS)
