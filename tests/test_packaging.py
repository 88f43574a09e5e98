"""The wheel, its files, and who may import whom."""

import subprocess
import sys
import zipfile
from pathlib import Path

from support import ROOT

SHIPPED = {".py", ".typed", ".jinja", ".css", ".safetensors", ".json", ".md"}
STAGES = ("bench", "distill", "export", "quantize")


def test_wheel_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    folders = {"atlas_edge": ROOT / "src" / "atlas_edge", **{f"atlas_edge/{name}": ROOT / name for name in STAGES}}
    expected = {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for prefix, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    assert packed == expected


def test_stages_are_links_into_the_package() -> None:
    for name in STAGES:
        assert (ROOT / "src" / "atlas_edge" / name).resolve() == ROOT / name


def test_dependencies_point_one_way() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": "src"})
    assert done.returncode == 0, done.stdout + done.stderr


def test_generic_top_level_imports_are_banned(tmp_path: Path) -> None:
    for name in STAGES:
        (tmp_path / "sample.py").write_text(f"import {name}\n")
        command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "TID251" in done.stdout
