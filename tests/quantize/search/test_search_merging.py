"""Plans that merge tokens: tried where INT8 passes and they are asked for, until one fails."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from folding_kinds import encoder_of

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.options import Budget
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.plan import Plan
from atlas_edge.quantize.recipe import Recipe, for_merging, nncf_recipe
from atlas_edge.quantize.search import candidates
from atlas_edge.quantize.search.accuracy import PlanAccuracy
from atlas_edge.quantize.search.bench import MeasureConfig
from atlas_edge.quantize.search.candidates import merging_plans
from atlas_edge.quantize.search.search import SearchConfig, _try_plans
from atlas_edge.spec import Target


@pytest.fixture(autouse=True)
def _small_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    # Networks of two blocks have little to merge.
    monkeypatch.setattr(candidates, "MERGED", (1.02, 1.04, 1.06, 9.0))


class Bench:
    """Every plan costs as many points as its blocks compute less, in hundredths."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.model, self.backend = SimpleNamespace(module=module), backend_of(Target.OPENVINO)
        self.said: list[str] = []
        self.say = self.said.append

    def known(self, _: Plan) -> None:
        return None

    def measure(self, plan: Plan) -> PlanAccuracy:
        drop = 0.0 if plan.recipe is None else 100 * (plan.recipe.merge_tokens - 1)
        interval = Interval(estimate=drop, low=drop, high=drop, units=9, unit="tile")
        one = Interval(estimate=1, low=1, high=1, units=9, unit="tile")
        return PlanAccuracy(
            tiles=9, cosine_median=1, cosine_p1=one, cosine_worst=1, drop_pp=interval, flip_percent=interval
        )


def _tried(module: torch.nn.Module, *, merge_tokens: bool, drop: float) -> tuple[list[str], list[str]]:
    measure = MeasureConfig(model="m", tiles="t", evaluation="e", target=Target.OPENVINO, out=Path("out"))
    config = SearchConfig(measure=measure, budget=Budget(max_drop_pp=drop), merge_tokens=merge_tokens)
    bench = Bench(module)
    measured, _ = _try_plans(bench, config, time.monotonic())  # type: ignore[arg-type]
    return [plan.name for plan, _ in measured if "less work" in plan.name], bench.said


def test_plans_that_merge_are_tried_until_one_fails() -> None:
    module, _ = encoder_of("pre-norm")
    assert _tried(module, merge_tokens=True, drop=3.0)[0] == [
        "int8, 1.02 times less work",
        "int8, 1.04 times less work",
    ]
    assert len(_tried(module, merge_tokens=True, drop=50.0)[0]) == 3
    assert _tried(module, merge_tokens=False, drop=50.0)[0] == []


def test_a_network_that_cannot_merge_is_told() -> None:
    module, _ = encoder_of("pre-norm")
    module.backbone.blocks[0].mlp = torch.nn.Sequential(module.backbone.blocks[0].mlp)
    tried, said = _tried(module, merge_tokens=True, drop=50.0)
    assert not tried and "this network cannot merge tokens" in said


@pytest.mark.parametrize("target", [Target.OPENVINO, Target.ONNX])
def test_a_plan_goes_on_from_the_recipe(target: Target) -> None:
    module, _ = encoder_of("gated")
    recipe = for_merging(Recipe(name="mine", smooth_alphas=(0.3,)), 1.03)
    plans = merging_plans(target, module, recipe)
    assert [plan.recipe.merge_tokens for plan in plans if plan.recipe] == [1.04, 1.06]
    assert all(plan.recipe is not None and plan.recipe.smooth_alphas == (0.3,) for plan in plans)
    assert merging_plans(target, module, nncf_recipe()) == []
