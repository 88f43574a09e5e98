"""Which of plan, command line and default decides."""

from pathlib import Path

import pytest

from atlas_edge.errors import UsageError
from atlas_edge.export.config import resolve
from atlas_edge.manifest import ModelProvenance
from atlas_edge.quantize.plan import Plan, SavedPlan, save_plan
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
