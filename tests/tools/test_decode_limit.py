"""What is sampled and what follows from it."""

import sys
from pathlib import Path

import pytest

import decode_limit as tool

pytest.importorskip("imagecodecs")
pytest.importorskip("tifffile")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for py-spy")


def test_the_most_that_threads_can_give_follows_from_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spy = tmp_path / "py-spy"
    # A quarter of its samples hold the interpreter.
    spy.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "said = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        "eighth = int(said('--rate')) * int(said('--duration')) // 8\n"
        "pathlib.Path(said('--output')).write_text(f'a;b {eighth}\\nc {eighth}\\n')\n"
    )
    spy.chmod(0o755)
    genuine = tool.written
    monkeypatch.setattr(tool, "written", lambda folder, side: genuine(folder, side, ["JPEG"]))
    monkeypatch.setattr(tool, "_processes", lambda _: 7.0)
    tool.decode_limit(side=512, py_spy=str(spy), rounds=1)
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    a_tile, held = map(float, row[5].split(", "))
    assert row[1] == "JPEG" and row[4] == "7"
    assert held == pytest.approx(a_tile / 4, abs=1) and float(row[6]) == pytest.approx(4e6 / a_tile, rel=0.05)
