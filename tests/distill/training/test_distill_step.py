"""A step: computed in parts it is the same, and with a scaled loss it goes on where it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import losses_of, tiny_config

from atlas_edge.distill.targets.losses import TeacherHead
from atlas_edge.distill.targets.phis import FeatureStatistics, identity
from atlas_edge.distill.training import loop
from atlas_edge.distill.training.checkpoint import load_extra
from atlas_edge.distill.training.held_out import HeldOut, held_out_figures, normalised
from atlas_edge.distill.training.out_of_memory import more_parts
from atlas_edge.distill.training.run import distill, run_folder
from atlas_edge.distill.training.state import parameter_groups
from atlas_edge.distill.training.student import Distiller, build_student
from atlas_edge.errors import UsageError


class _Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


def test_a_step_in_parts_is_the_same_step(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    whole, parts = (
        tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / name, steps=8, accumulate=count)
        for name, count in (("whole", 1), ("parts", 3))
    )

    def stop(state: Any) -> None:
        if state.step == 6:
            raise _Stopped

    distill(whole)
    with pytest.raises(_Stopped):
        distill(tiny_config(tiny_model, tile_folder, tiny_student, parts.out, steps=8), progress=stop)
    # More parts are no other run.
    assert distill(parts).resumed_from == 5
    parts_alone = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "alone", steps=8, accumulate=3)
    distill(parts_alone)
    expected = losses_of(whole.out)
    for out in (parts.out, parts_alone.out):
        found = losses_of(out)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    assert losses_of(parts_alone.out) != expected
    with pytest.raises(UsageError, match="a step has 8 views"):
        distill(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "many", accumulate=9))


def test_a_scaled_run_that_was_killed_goes_on_to_the_same_losses(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    whole, killed = (
        tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / name, steps=12, precision="fp16")
        for name in ("whole", "killed")
    )

    def stop(state: Any) -> None:
        if state.step == 6:
            raise _Stopped

    distill(whole)
    with pytest.raises(_Stopped):
        distill(killed, progress=stop)
    scaler = {name: value.item() for name, value in load_extra(run_folder(killed.out)).items() if "scaler" in name}
    # The first scale of 65,536 is halved where a gradient overflows, and that step is left out.
    assert scaler["scaler.scale"] < 65_536 and scaler["scaler._growth_tracker"] < 5
    assert distill(killed).resumed_from == 5
    losses = losses_of(whole.out)
    assert losses_of(killed.out) == losses and losses[12] < losses[5]


def test_blocks_further_from_the_end_learn_more_slowly(tiny_student: Path) -> None:
    transform = identity(FeatureStatistics.of([np.ones((2, 4), np.float32)]))
    model = Distiller(build_student(str(tiny_student))[0], [TeacherHead(32, transform, None)])
    names = {parameter: name for name, parameter in model.named_parameters()}
    alike = parameter_groups(model, weight_decay=0.1, layer_decay=1.0)
    assert [(group["weight_decay"], group["lr_scale"]) for group in alike] == [(0.1, 1.0), (0.0, 1.0)]
    scales = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert scales.keys() == set(names.values())
    assert scales["heads.0.cls.weight"] == (1.0, 0.1) and scales["backbone.norm.weight"] == (1.0, 0.0)
    assert scales["backbone.blocks.1.mlp.fc1.weight"] == (0.5, 0.1)
    assert scales["backbone.blocks.0.norm1.bias"] == (0.25, 0.0)
    assert scales["backbone.patch_embed.proj.weight"] == (0.125, 0.1)
    assert scales["backbone.pos_embed"] == scales["backbone.cls_token"] == (0.125, 0.0)


def test_held_out_tiles_of_two_centres_tell_robustness(tiny_student: Path) -> None:
    backbone, architecture = build_student(str(tiny_student))
    transform = identity(FeatureStatistics.of([np.ones((2, 4), np.float32)]))
    model = Distiller(backbone, [TeacherHead(32, transform, None)])
    dark = np.arange(16) % 2 == 0
    pixels = np.where(dark[:, None, None, None], 60, 200) + np.random.default_rng(0).integers(0, 40, (16, 32, 32, 3))
    tiles = HeldOut(
        tiles=pixels.astype(np.uint8),
        features=np.ones((16, 4), np.float32),
        labels=np.where(dark, "dark", "light"),
        centers=tuple("ab"[number // 8] for number in range(16)),
        groups=tuple(f"slide{number}" for number in range(16)),
    )
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(model.eval()(normalised(tiles.tiles, architecture))[:, 0], dim=-1)
    near = (tokens @ tokens.T).fill_diagonal_(-1).topk(11).indices.numpy()
    same_class, same_center = (values[near] == values[:, None] for values in (dark, np.arange(16) // 8))
    biology, center = (same_class & ~same_center).sum(), (~same_class & same_center).sum()
    found = held_out_figures(model, tiles, architecture)["held_out_robustness"]
    assert found == pytest.approx(biology / (biology + center)) and found > 0.6
    for missing in (replace(tiles, centers=None), replace(tiles, centers=("a",) * 16), replace(tiles, groups=None)):
        assert held_out_figures(model, missing, architecture)["held_out_robustness"] is None


def test_a_step_that_needs_less_memory_is_one_that_there_can_be() -> None:
    config = tiny_config(Path("teacher"), Path("tiles"), Path("start"), Path("student"), batch=8, accumulate=2)
    assert "--accumulate 4" in more_parts(config, 8)
    # Of two processes each has half of the views.
    assert "--accumulate 4" in more_parts(config, 4)
    assert "--accumulate" not in more_parts(config, 3) and "--batch 4" in more_parts(config, 3)
