"""The committed table: which recipes it holds, and that a section replaces its own only."""

from pathlib import Path

import pytest

from atlas_edge.bench.interval import Interval
from atlas_edge.errors import InputError
from atlas_edge.quantize.recipe import Recipe, onnx_recipe
from atlas_edge.quantize.search.timing import PlanSpeed
from atlas_edge.spec import Precision, Target
from quantization_table import _compared, replace_section, table_plans
from support import RunCommand


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


def test_what_cannot_take_the_section_is_refused_before_anything_is_measured(
    tiny_model: Path, tiles: Path, tmp_path: Path, run_tool: RunCommand
) -> None:
    half = tmp_path / "half.md"
    half.write_text("<!-- begin tiny-vit openvino -->\n", encoding="utf-8")
    for file, message in ((tmp_path, "is a folder"), (half, "one of <!-- begin")):
        done = run_tool("quantization_table", file, tiny_model, tiles)
        assert done.returncode == 5
        assert message in done.stderr and "fix:" in done.stderr
        assert "cosine" not in done.stdout + done.stderr
    assert half.read_text(encoding="utf-8") == "<!-- begin tiny-vit openvino -->\n"


def test_the_default_is_among_the_recipes_and_names_differ() -> None:
    default = onnx_recipe()
    changed = default.model_copy(update={"calibrator": "max"})
    # Two that `atlas-quantize recipe` calls custom, one of them twice, the default as saved, and one of its name.
    first, second = Recipe(), Recipe(exclude=("blocks.*",))
    plans = table_plans(Target.ONNX, [first, second, first, default, changed])
    assert [plan.precision for plan in plans[:2]] == [Precision.FP32, Precision.FP16]
    found = {plan.name: plan.recipe for plan in plans[2:]}
    assert list(found) == ["onnx-int8-plain", "custom", "custom-2", "onnx-int8-2", "onnx-int8"]
    assert list(found.values())[1:] == [first, second, changed, default]


def test_the_default_is_compared_with_the_others_round_by_round() -> None:
    def speed(*rounds: float) -> PlanSpeed:
        return PlanSpeed(
            tiles_per_s=sum(rounds) / len(rounds),
            ratio=Interval(estimate=1, low=1, high=1, units=2, unit="round"),
            rounds_tiles_per_s=rounds,
        )

    # Twice as fast in every round, though both slow down: the interval is a point.
    line = _compared({"mine": speed(20.0, 10.0), "bf16": speed(10.0, 5.0)}, "mine", ["bf16", "mine"])
    assert line == "In the same rounds `mine` has 2.00x [2.00, 2.00] the throughput of `bf16`."
