"""Training against a plain loop, timed."""

import json
from pathlib import Path

import numpy as np
import pytest

from support import RunCommand


def test_throughput_takes_turns_with_a_plain_loop(
    run_tool: RunCommand, tiny_model: Path, tiles: Path, tmp_path: Path
) -> None:
    result = run_tool(
        "distill_throughput", tiny_model, "--tiles", tiles, "--student", tiny_model, "--batch", "8",
        "--online", tiny_model, "--steps", "2", "--rounds", "2", "--threads", "1", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert {name: len(rates) for name, rates in figures["images_per_s"].items()} == {
        "distill": 2, "plain": 2, "data": 2, "online": 2
    }  # fmt: skip
    assert set(figures["ratios"]) == {"plain", "data", "online"}
    for name, ratio in figures["ratios"].items():
        rates = [np.array(figures["images_per_s"][arm]) for arm in ("distill", name)]
        assert ratio["estimate"] == pytest.approx(np.exp(np.log(rates[0] / rates[1]).mean()))
    assert figures["loss_difference"] == 0  # here both arms run the teacher
    assert len(figures["losses"]["online"]) == 2 * (2 + 1)  # a round of two steps to warm up, and two that count
    assert not any(tmp_path.iterdir())
