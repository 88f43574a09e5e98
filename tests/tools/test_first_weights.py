"""Starts in closed form beside random weights, of teachers of each kind."""

import json
from pathlib import Path

import pytest
from timm.layers import SwiGLUPacked
from torch import nn

from support import RunCommand, write_timm_folder

_SIZE = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 2}


def test_each_teacher_and_depth_has_a_row_with_both_starts(run_tool: RunCommand, tiles: Path, tmp_path: Path) -> None:
    plain = write_timm_folder(tmp_path / "plain", "vit_small_patch14_dinov2", init_values=0.5, **_SIZE)
    gated = write_timm_folder(
        tmp_path / "gated", "vit_small_patch14_dinov2", init_values=0.5, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU,
        config_args={**_SIZE, "init_values": 0.5, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"}, **_SIZE,
    )  # fmt: skip
    rotary = write_timm_folder(
        tmp_path / "rotary", "vit_small_patch16_dinov3", init_values=0.5, num_reg_tokens=2, global_pool="token", **_SIZE
    )
    command = (
        "first_weights", plain, gated, rotary, "--depths", "4", "3", "2", "--width", "32", "--views", "24",
        "--tiles", tiles, "--held-out", f"{tiles}@test", "--precision", "fp32",
    )  # fmt: skip
    result = run_tool(*command, "--as-json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["kind"], row["teacher_blocks"], row["student_blocks"]) for row in rows] == [
        (kind, 3, depth) for kind in ("plain", "gated", "rotary") for depth in (3, 2)
    ]
    for row in rows:
        assert -1 <= row["random"] <= 1 and row["fitted"] == pytest.approx(row["fitted"])
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "gated", "rotary"}
