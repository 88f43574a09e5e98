"""One door a target: a new one is one file, and no other file tells targets apart."""

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge import open_bundle
from atlas_edge.bench.cli import app as bench_app
from atlas_edge.cli import run_app
from atlas_edge.export.cli import app
from atlas_edge.quantize.backend import BACKENDS, backend_of
from atlas_edge.quantize.cli import app as quantize_app
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.registry import RUNTIMES, runtime_of
from atlas_edge.spec import Precision, Target
from support import ROOT

NAME = "onnx-evaluator"
# Where targets may be told apart, and where they are listed.
ROOMS = ("export/backends/", "src/atlas_edge/runtimes/", "src/atlas_edge/targets.py")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    for name in ("_member_map_", "_value2member_map_"):
        monkeypatch.setattr(Target, name, dict(getattr(Target, name)))
    monkeypatch.setattr(Target, "_member_names_", list(Target._member_names_))
    for registry in (RUNTIMES, BACKENDS):
        monkeypatch.setitem(registry, NAME, "")
    importlib.import_module("made_up_target")
    yield Target(NAME)
    del sys.modules["made_up_target"]


def test_a_new_target_goes_through_every_command(
    made_up: Target,
    tiny_model: Path,
    tiles: Path,
    tiny_tiles: NDArray[np.uint8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bundle"
    asked = [str(tiny_model), "--target", NAME, "--calib", str(tiles), "--out", str(out), "--no-speed"]
    assert run_app(app, [*asked, "--precision", "int8"]) == 2
    assert "it computes what it reads" in capsys.readouterr().err
    assert run_app(app, [*asked, "--precision", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == NAME
    assert run_app(app, ["verify", str(out)]) == 0
    assert f"intact. tiny-vit, {NAME} fp32" in capsys.readouterr().out
    encoder = open_bundle(out)
    expected = OnnxEncoder(out / "model.onnx", encoder.spec).encode(tiny_tiles)
    np.testing.assert_allclose(encoder.encode(tiny_tiles), expected, atol=1e-5)
    assert encoder.runtime == "ONNX's evaluator"
    timed = ["speed", str(out), "--rounds", "2", "--block-seconds", "0.01", "--batch", "2", "--json"]
    assert run_app(bench_app, timed) == 0
    (facts,) = json.loads(capsys.readouterr().out)["encoders"].values()
    assert (facts["target"], facts["runtime"]) == (NAME, "ONNX's evaluator")
    assert run_app(app, ["doctor", "--json"]) == 0
    abilities = {one["target"]: one for one in json.loads(capsys.readouterr().out)["abilities"]}
    assert abilities[NAME] == {"target": NAME, "build": True, "run": True, "note": ""}
    assert run_app(quantize_app, ["recipe", NAME, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [NAME]


def test_every_target_has_one_backend_and_one_runtime() -> None:
    assert set(Target) == RUNTIMES.keys() == BACKENDS.keys()
    for target in Target:
        assert backend_of(target).target is target
        assert runtime_of(target).extra
        assert backend_of(target).default_recipe(Precision.INT8) == backend_of(target).recipe


def test_no_other_file_tells_targets_apart() -> None:
    names = {target.name for target in Target}
    values = {target.value for target in Target}
    found = []
    for root in ("bench", "distill", "export", "quantize", "src/atlas_edge"):
        for path in sorted((ROOT / root).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if not place.startswith(ROOMS):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                found += [f"{place}:{line}" for line in _told_apart(tree, names, values)]
    assert found == []


def test_telling_targets_apart_is_noticed() -> None:
    text = """
a = target is Target.ONNX
b = manifest.target in (Target.TENSORRT, Target.TENSORRT_RTX)
c = {Target.OPENVINO: 1}
d = {(Target.OPENVINO, 1): 2}
e = facts.target in ("openvino", "onnx")
f = Target.ONNX if a else Target.OPENVINO
match target:
    case Target.ONNX: pass
g = notice(Target.ONNX)
h = "openvino" in installed
"""
    names, values = {target.name for target in Target}, {target.value for target in Target}
    assert _told_apart(ast.parse(text), names, values) == [2, 3, 4, 5, 6, 9]


def _told_apart(tree: ast.AST, names: set[str], values: set[str]) -> list[int]:
    """Lines that compare a target, or look something up by it."""
    lines = set()
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern]
        inside = [one for part in parts for one in ast.walk(part)]
        member = any(
            isinstance(one, ast.Attribute) and one.attr in names and getattr(one.value, "id", "") == "Target"
            for one in inside
        )
        by_name = isinstance(node, ast.Compare) and any(getattr(one, "attr", "") == "target" for one in inside)
        literal = any(isinstance(one, ast.Constant) and one.value in values for one in inside)
        if member or (by_name and literal):
            lines.add(next(one.lineno for one in inside if hasattr(one, "lineno")))
    return sorted(lines)
