from pathlib import Path

import numpy as np
import pytest

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.bench.accuracy.measure import AccuracyReport, CandidateAccuracy
from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.budgets import Budget, Budgets, Judged, judged_figures, read_budgets, run_gate
from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.errors import InputError


def _judged(low: float, estimate: float, high: float, *, units: int = 600, unit: str = "tile") -> Judged:
    value = Interval(low=low, estimate=estimate, high=high, units=units, unit=unit)
    return Judged(figure="drop", option="--max-drop", field="max_drop_pp", value=value, tiles=600)


def test_a_pattern_replaces_the_default_value_by_value(tmp_path: Path) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text('[default]\nmax_drop_pp = 1\nmin_cosine = 0.99\n[candidate."*bf16"]\nmax_drop_pp = 0.5\n')
    budgets = read_budgets(file)
    assert budgets.of("x-int8") == Budget(max_drop_pp=1, min_cosine=0.99)
    assert budgets.of("x-bf16") == Budget(max_drop_pp=0.5, min_cosine=0.99)


def test_options_win_over_the_file_for_every_candidate() -> None:
    budgets = Budgets(default=Budget(max_drop_pp=1), candidate={"b": Budget(max_drop_pp=0.5, max_flip_percent=2)})
    given = budgets.overridden(Budget(max_drop_pp=3))
    assert given.of("a") == Budget(max_drop_pp=3)
    assert given.of("b") == Budget(max_drop_pp=3, max_flip_percent=2)
    assert Budgets().overridden(Budget()).empty and not given.empty


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[default]\nmax_dorp_pp = 1\n", "max_dorp_pp.*known budgets: max_drop_pp"),
        ("[default]\nmax_drop_pp = -1\n", "greater than or equal to 0"),
        ("[default]\nmax_flip_percent = 'a few'\n", "valid number"),
        ("[default", "is no TOML file"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "budgets.toml").write_text(text)
    with pytest.raises(InputError, match=f"(?s){said}") as found:
        read_budgets(tmp_path / "budgets.toml")
    assert found.value.exit_code == 5


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_budgets(tmp_path / "none.toml")


def test_verdicts_and_what_would_settle_them() -> None:
    budgets = Budgets(default=Budget(max_drop_pp=1))
    figures = {"good": [_judged(-1, 0, 1)], "bad": [_judged(1.5, 2, 2.5)], "unsure": [_judged(-2, 0, 2)]}
    found = run_gate(budgets, figures)
    assert [check.verdict for check in found.checks] == ["PASS", "FAIL", "INCONCLUSIVE"]
    assert found.verdict is Verdict.FAIL
    assert found.checks[0].advice == ""
    assert found.checks[1].advice.startswith("quantize it more gently")
    assert found.checks[2].advice == "about 2400 tiles would settle it; there are 600"


def test_advice_counts_in_slides_where_slides_are_the_units() -> None:
    figures = {"a": [_judged(-2, 0, 2, units=40, unit="group")], "few": [_judged(-0.5, 0, 0.5, units=10, unit="group")]}
    found = run_gate(Budgets(default=Budget(max_drop_pp=1)), figures)
    assert [check.verdict for check in found.checks] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert found.checks[0].advice == "about 160 groups (2400 tiles like these) would settle it; there are 40"
    assert found.checks[1].advice == (
        "about 36 groups (2160 tiles like these) would settle it; there are 10; below 36 nothing passes, as a kind of "
        "slide that is one in ten may not be among them"
    )


def test_an_unmeasured_figure_never_passes() -> None:
    figure = Judged(figure="linear probe drop", option="--max-drop", field="max_drop_pp", value=None)
    with pytest.raises(InputError, match="--max-drop is set, but linear probe drop could not be measured"):
        run_gate(Budgets(default=Budget(max_drop_pp=1)), {"a": [figure]})


def test_a_pattern_without_a_candidate_is_refused() -> None:
    budgets = Budgets(candidate={"*int9": Budget(max_drop_pp=1)})
    with pytest.raises(InputError, match=r"int9.* matches none of a-int8"):
        run_gate(budgets, {"a-int8": [_judged(0, 0, 0)]})


def test_cosine_is_judged_on_its_lower_end() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    y = x + rng.normal(size=x.shape).astype(np.float32) * 0.05
    agreement = embedding_agreement(x, y)
    candidate = CandidateAccuracy(
        agreement=agreement, cosines=(), worst_tiles=(), cka=1.0, drops=(), robustness_drop=None, stress=()
    )
    accuracy = AccuracyReport(
        reference="r", scores={}, candidates={"c": candidate}, notes=(), encoding_s=0, statistics_s=0
    )
    p1 = agreement.cosine_p1_interval
    assert p1.low < p1.estimate
    figures = judged_figures(accuracy)
    between = Budgets(default=Budget(min_cosine=(p1.low + p1.estimate) / 2))
    assert run_gate(between, figures).verdict is Verdict.INCONCLUSIVE
    assert run_gate(Budgets(default=Budget(min_cosine=p1.low)), figures).verdict is Verdict.PASS
    assert run_gate(Budgets(default=Budget(min_cosine=p1.high + 1e-6)), figures).verdict is Verdict.FAIL
