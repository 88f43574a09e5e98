"""A step: computed in parts it is the same, and with a scaled loss it goes on where it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import losses_of, tiny_config

from atlas_edge.distill.training import loop
from atlas_edge.distill.training.checkpoint import load_extra
from atlas_edge.distill.training.out_of_memory import more_parts
from atlas_edge.distill.training.run import distill, run_folder
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


def test_a_step_that_needs_less_memory_is_one_that_there_can_be() -> None:
    config = tiny_config(Path("teacher"), Path("tiles"), Path("start"), Path("student"), batch=8, accumulate=2)
    assert "--accumulate 4" in more_parts(config, 8)
    # Of two processes each has half of the views.
    assert "--accumulate 4" in more_parts(config, 4)
    assert "--accumulate" not in more_parts(config, 3) and "--batch 4" in more_parts(config, 3)
