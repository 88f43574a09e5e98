"""The last steps with rounded inputs and weights: on INT8's grids, gradients passed over, and the run still learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import losses_of, tiny_config
from torch.nn import functional as F

from atlas_edge.distill.rounding import rounded_input, rounded_weight, rounding
from atlas_edge.distill.training import loop
from atlas_edge.distill.training.run import distill
from atlas_edge.quantize.numerics.rounding import fake_round, fake_weight, grid_ends


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("shift", [0.0, 2.5, 9.0])
def test_values_lie_on_the_grids_of_an_export(shift: float) -> None:
    torch.manual_seed(0)
    values, weight = torch.randn(64, 33) + shift, torch.randn(7, 33)
    ends = grid_ends(float(values.min()), float(values.max()))
    torch.testing.assert_close(rounded_input(values), fake_round(values, *ends), rtol=0, atol=1e-5)
    torch.testing.assert_close(rounded_weight(weight), fake_weight(weight), rtol=0, atol=1e-6)
    assert (rounded_input(torch.zeros(3, 4)) == 0).all() and (rounded_weight(torch.zeros(3, 4)) == 0).all()


def test_gradients_pass_over_the_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear, values = torch.nn.Linear(16, 8), torch.randn(5, 16, requires_grad=True)
    config = tiny_config(tmp_path, tmp_path, tmp_path, tmp_path / "out", steps=10, rounded_share=0.3)
    with rounding(wanted=config.is_rounded(6)):
        assert torch.equal(linear(values), F.linear(values, linear.weight, linear.bias))
    with rounding(wanted=config.is_rounded(7)):
        found = linear(values)
    plain = values.detach()
    expected = fake_round(plain, *grid_ends(float(plain.min()), float(plain.max())))
    torch.testing.assert_close(found, F.linear(expected, fake_weight(linear.weight.detach()), linear.bias))
    found.sum().backward()
    torch.testing.assert_close(values.grad, fake_weight(linear.weight.detach()).sum(0).expand(5, -1))
    torch.testing.assert_close(linear.weight.grad, expected.sum(0).expand(8, -1))


def test_a_run_learns_to_its_end_and_goes_on_where_it_was_killed(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)
    plain, rounded, killed = (
        tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / name, steps=40, rounded_share=share)
        for name, share in (("plain", 0.0), ("rounded", 0.5), ("killed", 0.5))
    )

    def stop(state: Any) -> None:
        if state.step == 28:
            raise _Stopped

    for config in (plain, rounded):
        distill(config)
    with pytest.raises(_Stopped):
        distill(killed, progress=stop)
    assert distill(killed).resumed_from == 25
    losses = [losses_of(config.out) for config in (plain, rounded, killed)]
    assert losses[1] == losses[2]
    assert {step for step in losses[0] if losses[0][step] != losses[1][step]} == set(range(21, 41))
    values = np.array(list(losses[1].values()))
    assert values[-8:].mean() < values[20:28].mean() < values[:8].mean()
