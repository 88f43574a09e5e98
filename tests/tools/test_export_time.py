"""The command that says how long an export takes, on a tiny one."""

from pathlib import Path

import pytest

import export_time as tool
from atlas_edge.errors import InputError, UsageError


def test_versions_take_turns_and_every_step_has_its_row(
    tiny_model: Path, tiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = "--no-speed --calib-limit 8 --fit-limit 8 --eval-limit 8"
    tool.export_time(
        str(tiny_model), str(tiles), against=tool.HERE, target="onnx", precision="fp32", rounds=1, options=few
    )
    said = capsys.readouterr()
    rows = [line.split(" | ") for line in said.out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == [
        *("step", "start", "load", "calibrate", "quantize", "build", "verify", "bench", "whole", "peak memory")
    ]
    whole = rows[-2]
    assert float(whole[1]) > 0 and float(whole[2]) > 0
    assert float(rows[-1][1].removesuffix(" GB")) > 0.1
    assert said.err.index("the other") < said.err.index("this version")


def test_intervals_are_of_the_rounds() -> None:
    def run(load: float) -> tool.Run:
        return tool.Run(seconds={"load": load, "build": 0.01}, memory_bytes=2 * 10**9)

    table = tool.markdown({"this version": [run(2.0), run(2.0)], "the other": [run(4.0), run(4.0)]})
    assert "| load | 2.0 (2.0 to 2.0) | 4.0 (4.0 to 4.0) | 2.00 (2.00 to 2.00) |" in table
    assert "| build | 0.0 | 0.0 |  |" in table
    assert "| peak memory | 2.00 GB | 2.00 GB | |" in table


def test_what_cannot_be_timed_is_refused(tmp_path: Path, tiny_model: Path, tiles: Path) -> None:
    with pytest.raises(UsageError, match="--rounds 0"):
        tool.export_time("atlas2-demo", "synthetic", rounds=0)
    with pytest.raises(InputError, match="no src/atlas_edge"):
        tool.export_time("atlas2-demo", "synthetic", against=tmp_path)
    with pytest.raises(InputError, match=r"ended with code 2.*--max-drop"):
        tool.export_time(str(tiny_model), str(tiles), precision="fp8", options="--max-drop -1")
