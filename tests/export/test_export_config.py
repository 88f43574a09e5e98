"""Which of plan, command line and default decides."""

from pathlib import Path

import pytest

from atlas_edge.errors import UsageError
from atlas_edge.export.config import resolve
from atlas_edge.manifest import ModelProvenance
from atlas_edge.quantize.plan import Plan, SavedPlan, save_plan
from atlas_edge.quantize.recipe import save_recipe
from atlas_edge.spec import Precision, Target


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    saved = SavedPlan(
        plan=Plan(name="half", target=Target.ONNX, precision=Precision.FP16),
        model=ModelProvenance(name="tiny", source="checkpoint"),
        calib_limit=120,
        fit_limit=340,
        seed=5,
    )
    save_plan(saved, path)
    return path


def test_a_plan_fills_in_what_the_command_line_leaves_open(plan: Path) -> None:
    config = resolve(plan=plan, calib_limit=50, fit_limit=None, seed=0)
    assert (config.target, config.precision) == (Target.ONNX, Precision.FP16)
    assert (config.calib_limit, config.fit_limit, config.seed) == (50, 340, 0)


def test_without_a_plan_the_defaults_decide() -> None:
    config = resolve(target="onnx", precision="fp16", calib_limit=None, fit_limit=None, eval_limit=None, seed=None)
    assert (config.calib_limit, config.fit_limit, config.eval_limit, config.seed) == (300, 600, 2000, 0)


def test_a_plan_for_another_target_is_a_contradiction(plan: Path) -> None:
    with pytest.raises(UsageError, match="--target openvino, but"):
        resolve(plan=plan, target="openvino")


@pytest.mark.parametrize("target", Target)
def test_merging_is_int8(target: Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--merge-tokens"):
        resolve(target=target, precision=Precision.FP16, merge_tokens=1.2)
    assert resolve(target=target, precision=Precision.INT8, merge_tokens=1.0).int8_recipe.merge_tokens == 1
    config = resolve(target=target, precision=Precision.INT8, merge_tokens=1.25)
    assert config.int8_recipe.merge_tokens == 1.25 and config.output.name.endswith("-merged1.25")
    saved = tmp_path / "recipe.json"
    save_recipe(config.int8_recipe, saved)
    assert resolve(target=target, precision=Precision.INT8, recipe=saved).int8_recipe.merge_tokens == 1.25
    with pytest.raises(UsageError, match="in a recipe, too"):
        resolve(target=target, precision=Precision.FP16, recipe=saved)


def test_fewer_patch_tokens_are_no_output() -> None:
    with pytest.raises(UsageError, match="--output tokens"):
        resolve(target=Target.OPENVINO, precision=Precision.INT8, merge_tokens=1.2, graph_output="tokens")
