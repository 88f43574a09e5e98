"""Every command of the README is run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.slides.synthetic import make_slide
from pages import shell_lines
from support import ROOT, TINY_PX, RunCommand

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = shell_lines(README, "sh", "bat")
# What the demo runs, on fewer tiles and without the clock.
QUICK = {"CALIB": "synthetic:64", "CALIB_LIMIT": "8", "FIT_LIMIT": "16", "EVAL_LIMIT": "8", "SPEED": "false"}


def demo_commands() -> list[str]:
    recipe = (ROOT / "Makefile").read_text().partition("demo: .venv/demo\n")[2].partition("\n\n")[0]
    return [line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines() if "atlas-" in line]


def test_demo_runs(tmp_path: Path, run_command: RunCommand) -> None:
    pytest.importorskip("tensorrt_rtx")
    environment = {f"ATLAS_EXPORT_{name}": value for name, value in QUICK.items()}
    commands = demo_commands()
    assert len(commands) == 2
    for command in commands:
        done = run_command(*shlex.split(command), cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert "atlas2-demo is a DEMONSTRATION" in done.stderr
        assert "SYNTHETIC tiles" in done.stderr
    made = sorted(path.name for path in (tmp_path / "bundles").iterdir())
    assert made == ["atlas2-demo-openvino-int8", "atlas2-demo-tensorrt-int8"]
    for name in made:
        assert run_command("atlas-export", "verify", tmp_path / "bundles" / name).returncode == 0


def test_windows_commands_are_those_of_make() -> None:
    windows = [line.partition("Scripts\\")[2] for line in SHELL if line.startswith(".venv\\Scripts\\atlas-")]
    assert windows == [command.removesuffix(" --overwrite") for command in demo_commands()]


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("atlas-")])
def test_command_of_the_readme(
    line: str, tiny_model: Path, tiles: Path, bundle: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    placeholders = {"MODEL": tiny_model, "TILES": tiles, "BUNDLE": bundle, "SLIDE": tmp_path / "slide.tif"}
    if "SLIDE" in line:
        make_slide(tmp_path / "slide.tif", 900, 700)
    words = [str(placeholders.get(word, word)) for word in shlex.split(line)]
    # Real tiles of two plain colours: a budget of 1 pp can be undecided on so few of them.
    done = run_command(*words, cwd=tmp_path)
    assert done.returncode in ((0, 3) if "--max-drop" in words else (0,)), done.stderr


def test_snippet_of_the_readme(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 1
    shutil.copytree(bundle, tmp_path / "BUNDLE")
    monkeypatch.chdir(tmp_path)
    names = {"tiles": np.zeros((2, TINY_PX, TINY_PX, 3), dtype=np.uint8)}
    exec(snippets[0], names)
    assert names["embeddings"].shape == (2, 64)


def test_no_command_is_left_out(wheel: Path) -> None:
    """Those that are not run above need a network, or are these very tests."""
    made, extras = wheel.name, r"\[(?:[a-z]+,?)+\]"
    others = [line for line in SHELL if not line.startswith(("atlas-", ".venv\\Scripts\\atlas-"))]
    windows = ["py -3.11 -m venv .venv", r".venv\Scripts\pip install -e .[dev]", r".venv\Scripts\pytest"]
    assert others[:5] == ["make demo", "make test", *windows]
    assert len(others) == 6 and re.fullmatch(rf"pip install '\./{re.escape(made)}{extras}'", others[5]), others[5:]


def test_make_knows_its_targets() -> None:
    for target in ("demo", "test", "lint", "docs"):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
