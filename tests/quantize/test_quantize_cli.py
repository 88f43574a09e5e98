"""atlas-quantize through its real command line: recipes, sensitivity, and what atlas-export does with them."""

import json
from pathlib import Path

import pytest

from atlas_edge.cli import run_app
from atlas_edge.quantize.cli import app
from atlas_edge.quantize.recipe import load_recipe, onnx_recipe
from support import RunCommand


def test_a_recipe_is_changed_saved_and_used(
    tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    path = tmp_path / "mine.json"
    done = run_command(
        "atlas-quantize", "recipe", "onnx", "--rename", "mine", "--attention", "--exclude", "blocks.1.mlp.*",
        "--smooth-alpha", "0.6", "--no-patch-embed", "--out", path, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(path)
    assert json.loads(done.stdout)["onnx"]["name"] == "mine"
    assert (recipe.attention, recipe.exclude, recipe.smooth_alphas) == (True, ("blocks.1.mlp.*",), (0.6,))
    assert recipe.calibrator == onnx_recipe().calibrator
    done = run_command(
        "atlas-export", tiny_model, "--target", "onnx", "--precision", "int8", "--recipe", path, "--calib", tiles,
        "--out", tmp_path / "bundle", "--no-speed",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["quantization"]
    assert made["recipe"]["name"] == "mine"
    assert made["coverage"] == {"Conv": "0 of 1", "MatMul": "6 of 12"}
    assert made["attention_products"] == 4
    assert made["calibration"]["stratified_by"] == ["label", "colour"]


def test_every_target_has_a_default(run_command: RunCommand) -> None:
    done = run_command("atlas-quantize", "recipe", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"onnx", "openvino", "tensorrt", "tensorrt-rtx"}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("recipe", "nosuch"), 2, "no recipe is called 'nosuch'"),
        (("recipe", "--out", "x.json"), 2, "no recipe to change or save"),
        (("recipe", "onnx", "--calibrator", "median"), 2, "--calibrator"),
        (("sensitivity", "atlas2-s", "nowhere"), 5, "nowhere does not exist"),
        (("sensitivity", "atlas2-s", "synthetic:32", "--count", "0"), 2, "--count"),
        (("calibration", "atlas9", "synthetic:32"), 2, "no model is called"),
    ],
)
def test_mistakes_of_quantize(
    arguments: tuple[str, ...], exit_code: int, message: str, tmp_path: Path, run_command: RunCommand
) -> None:
    done = run_command("atlas-quantize", *arguments, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_without_use_is_refused(tmp_path: Path, run_command: RunCommand) -> None:
    assert run_command("atlas-quantize", "recipe", "onnx", "--out", tmp_path / "r.json").returncode == 0
    done = run_command(
        "atlas-export", "atlas2-s", "--target", "onnx", "--precision", "fp16", "--recipe", tmp_path / "r.json",
        "--dry-run",
    )  # fmt: skip
    assert done.returncode == 2
    assert "no use for it" in done.stderr
    done = run_command("atlas-export", "atlas2-s", "--plan", tmp_path / "r.json", "--dry-run")
    assert done.returncode == 5
    assert "a recipe goes to --recipe" in done.stderr


def test_sensitivity_writes_table_and_plot(
    tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    out = tmp_path / "s"
    done = run_command(
        "atlas-quantize",
        "sensitivity",
        tiny_model,
        tiles,
        "--count",
        "8",
        "--calib-limit",
        "16",
        "--out",
        out,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((out / "sensitivity.json").read_text())
    assert len(found["layers"]) == 13
    errors = [value for entry in found["layers"] for value in (entry["alone"], entry["without"])]
    assert all(0 <= error < 0.1 for error in errors), errors
    assert sum(entry["alone"] > 1e-8 for entry in found["layers"]) > 8
    assert (
        "blocks.0.mlp.fc1" in (out / "sensitivity.svg").read_text() or "<svg" in (out / "sensitivity.svg").read_text()
    )


@pytest.mark.parametrize(("option", "value"), [("--merge-tokens", "0"), ("--weight-bits", "1")])
def test_a_value_out_of_range_is_told_by_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app, ["recipe", "openvino", option, value]) == 2
    assert f"error: {option}: Input should be greater than" in capsys.readouterr().err
