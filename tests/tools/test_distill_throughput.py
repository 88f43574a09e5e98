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
        "distill": 2, "plain": 2, "data": 2, "student": 2, "online": 2, "teacher": 2
    }  # fmt: skip
    assert set(figures["ratios"]) == {"plain", "data", "student", "online", "teacher"}
    for name, ratio in figures["ratios"].items():
        rates = [np.array(figures["images_per_s"][arm]) for arm in ("distill", name)]
        assert ratio["estimate"] == pytest.approx(np.exp(np.log(rates[0] / rates[1]).mean()))
    # What a step takes beyond both networks alone.
    per_image = {arm: 1 / np.array(rates) for arm, rates in figures["images_per_s"].items()}
    alone = {"distill": per_image["student"], "online": per_image["student"] + per_image["teacher"]}
    assert set(figures["outside"]) == set(alone)
    for arm, networks in alone.items():
        expected = 1 - np.exp(np.log(networks / per_image[arm]).mean())
        assert figures["outside"][arm]["estimate"] == pytest.approx(expected)
    assert figures["loss_difference"] == 0  # here both arms run the teacher
    assert len(figures["losses"]["online"]) == 2 * (2 + 1)  # a round of two steps to warm up, and two that count
    assert not any(tmp_path.iterdir())
