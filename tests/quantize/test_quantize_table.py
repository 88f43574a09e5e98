"""The committed table: which recipes it holds, and that a section replaces its own only."""

import pytest

from atlas_edge.errors import InputError
from atlas_edge.quantize.judged import Range
from atlas_edge.quantize.race import PlanSpeed
from atlas_edge.quantize.recipe import Recipe, default_recipe
from atlas_edge.quantize.table import _compared, replace_section, table_plans
from atlas_edge.spec import Precision, Target


def test_a_section_replaces_its_own_only() -> None:
    text = replace_section("# Title\n", "a onnx", "first")
    text = replace_section(text, "b onnx", "second \\1")
    changed = replace_section(text, "a onnx", "third")
    assert changed == (
        "# Title\n\n<!-- begin a onnx -->\nthird\n<!-- end a onnx -->\n\n"
        "<!-- begin b onnx -->\nsecond \\1\n<!-- end b onnx -->\n"
    )
    with pytest.raises(InputError, match="only"):
        replace_section("<!-- begin a onnx -->\n", "a onnx", "x")


def test_the_default_is_among_the_recipes_and_names_differ() -> None:
    plans = table_plans(Target.ONNX, [Recipe(name="mine")])
    names = [plan.name for plan in plans]
    assert names[0] == "fp32" and names[-1] == default_recipe(Target.ONNX).name
    assert "mine" in names and len(set(names)) == len(names)
    assert [plan.precision for plan in plans[:2]] == [Precision.FP32, Precision.FP16]


def test_the_default_is_compared_with_the_others_round_by_round() -> None:
    def speed(*rounds: float) -> PlanSpeed:
        return PlanSpeed(
            tiles_per_s=sum(rounds) / len(rounds),
            ratio=Range(estimate=1, low=1, high=1, units=2, unit="round"),
            rounds_tiles_per_s=rounds,
        )

    # Twice as fast in every round, though both slow down: the interval is a point.
    line = _compared({"mine": speed(20.0, 10.0), "bf16": speed(10.0, 5.0)}, "mine", ["bf16", "mine"])
    assert line == "In the same rounds `mine` has 2.00x [2.00, 2.00] the throughput of `bf16`."
