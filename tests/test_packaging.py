"""The wheel, its files, and who may import whom."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from support import ROOT

SHIPPED = {".py", ".typed", ".jinja", ".css", ".safetensors", ".json", ".md", ".toml", ".sh", ".ps1"}
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
    """For type checkers and editors; no install needs them."""
    for name in STAGES:
        assert (ROOT / "src" / "atlas_edge" / name).resolve() == ROOT / name


def test_an_editable_install_needs_no_links(linkless_tree: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(linkless_tree, tmp_path / "tree")
    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # This environment's packages come last: the finder of its own installation of ours has the same name.
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    Path(paths["purelib"], "others.pth").write_text(sysconfig.get_path("purelib"))
    install = [scripts / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", tree]
    subprocess.run(install, check=True, capture_output=True, env=environ)
    for stage in (*STAGES, "embed"):
        done = subprocess.run([scripts / f"atlas-{stage}", "--help"], capture_output=True, text=True, env=environ)
        assert done.returncode == 0 and f"atlas-{stage}" in done.stdout, done.stderr
    where = "import atlas_edge.bench.report.html as one; print(one.__file__)"
    done = subprocess.run([scripts / "python", "-c", where], capture_output=True, text=True, env=environ)
    assert Path(done.stdout.strip()) == tree / "bench" / "report" / "html.py", done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_a_build_without_a_stage_fails(linkless_tree: Path, tmp_path: Path, stage: str) -> None:
    tree = shutil.copytree(linkless_tree, tmp_path / "tree")
    shutil.rmtree(tree / stage)
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1 and "is missing: this copy of the sources is not whole" in done.stderr


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


def test_a_development_install_has_every_runtime_that_tests_would_skip_without() -> None:
    if not all(map(find_spec, ("xdist", "importlinter", "furo"))):
        pytest.skip("not installed with [dev]")
    # `tensorrt` itself is no part of it: its libraries come from an index of its own.
    for module in ("openvino", "onnxruntime", "tensorrt_rtx", "cuda.bindings", "zarr", "uv", "modelopt", "nncf"):
        assert find_spec(module) is not None, module
