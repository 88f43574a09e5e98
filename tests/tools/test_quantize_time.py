"""Quantization timed, two versions by turns."""

import json
from pathlib import Path

from quantize_time import _table
from support import ROOT, RunCommand


def test_two_versions_take_turns(run_tool: RunCommand, tiny_model: Path, tiles: Path) -> None:
    result = run_tool(
        "quantize_time", tiny_model, tiles, "--against", ROOT, "--count", "16", "--rounds", "1",
        "--targets", "openvino", "--as-json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    seconds = json.loads(result.stdout)["openvino"]
    assert {name: len(turns) for name, turns in seconds.items()} == {"this": 1, "other": 1}
    for ((wall, processor),) in seconds.values():
        assert wall > 0 and processor > 0


def test_what_is_no_checkout_is_refused(run_tool: RunCommand, tiny_model: Path, tiles: Path, tmp_path: Path) -> None:
    result = run_tool("quantize_time", tiny_model, tiles, "--against", tmp_path)
    assert result.returncode == 5
    assert "holds no src/atlas_edge" in result.stderr and "git worktree add" in result.stderr


def test_the_table_compares_turn_by_turn() -> None:
    seconds = {"onnx": {"other": [(8.0, 10.0), (16.0, 20.0)], "this": [(2.0, 3.0), (4.0, 5.0)]}}
    before, now = _table(seconds, "models/tiny", 16).splitlines()[2:4]
    assert before == "| onnx | other | 12.0 (8.0 to 16.0) | 15.0 (10.0 to 20.0) |  |"
    assert now == "| onnx | this | 3.0 (2.0 to 4.0) | 4.0 (3.0 to 5.0) | 4.00x [4.00, 4.00] |"
