import math

import numpy as np
import pytest

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.gate import Verdict, judge, units_to_settle, units_to_settle_quantile, worst


def _interval(low: float, estimate: float, high: float, units: int = 600) -> Interval:
    return Interval(low=low, estimate=estimate, high=high, units=units)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1, 0.9, "PASS"), (-1, 1.0, "PASS"), (0.2, 1.5, "INCONCLUSIVE"), (1.1, 2.0, "FAIL"), (1.0, 2.0, "INCONCLUSIVE")],
)
def test_the_upper_end_of_a_drop_is_judged(low: float, high: float, expected: str) -> None:
    assert judge(_interval(low, (low + high) / 2, high), 1.0) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.99, 1, "PASS"), (0.97, 0.995, "INCONCLUSIVE"), (0.9, 0.98, "FAIL")]
)
def test_the_lower_end_of_a_cosine_is_judged(low: float, high: float, expected: str) -> None:
    assert judge(_interval(low, (low + high) / 2, high), 0.99, higher_is_worse=False) == expected


def test_nan_never_passes() -> None:
    assert judge(_interval(math.nan, math.nan, math.nan), 1.0) is Verdict.FAIL
    assert judge(_interval(math.nan, math.nan, math.nan), 0.9, higher_is_worse=False) is Verdict.FAIL


def test_units_to_settle_follows_the_square_root() -> None:
    # Half-width 2 at 600 tiles; 1 is needed: four times the tiles.
    assert units_to_settle(_interval(-2, 0, 2), 1.0) == 2400
    assert units_to_settle(_interval(0, 2, 4), 1.0) == 2400
    assert units_to_settle(_interval(0, 1, 2), 1.0) is None
    assert units_to_settle(_interval(-math.inf, 0, math.inf, 1), 1.0) is None


def test_a_handful_of_slides_passes_nothing_unless_nothing_is_in_doubt() -> None:
    def by_slide(slides: int, half: float) -> Interval:
        return Interval(low=-half, estimate=0, high=half, units=slides, unit="group")

    assert judge(by_slide(35, 0.1), 1.0) is Verdict.INCONCLUSIVE
    assert judge(by_slide(36, 0.1), 1.0) is Verdict.PASS
    assert judge(by_slide(35, 0.0), 1.0) is Verdict.PASS  # equal bit for bit
    assert judge(by_slide(3, 0.1), -0.5) is Verdict.FAIL
    assert units_to_settle(by_slide(3, 0.1), 1.0) == 36


def test_a_first_percentile_is_settled_by_the_share_of_tiles_below_the_budget() -> None:
    values = np.linspace(0.99, 1.0, 100)
    few = Interval(low=-1, estimate=0.9901, high=0.992, units=100)
    # None of them below: 368 tiles, of which the worst would then be above.
    assert units_to_settle_quantile(values, 0.01, 0.98, few, 100.0) == 368
    # 2 % below: 1.96² · 0.01 · 0.99 / 0.01² = 380.3 tiles tell 2 % from 1 %.
    assert units_to_settle_quantile(values, 0.01, 0.9902, few, 100.0) == 381
    assert units_to_settle_quantile(values, 0.01, 0.9901, few, 100.0) is None
    # Ten slides whose 100 tiles are worth 50: twice as many tiles, and never fewer than 36 slides.
    slides = Interval(low=-1, estimate=0.9901, high=0.992, units=10, unit="group")
    assert units_to_settle_quantile(values, 0.01, 0.98, slides, 50.0) == 74
    assert units_to_settle_quantile(values, 0.01, 0.98, slides, 200.0) == 36


def test_worst_verdict_wins() -> None:
    assert worst([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert worst([Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]) is Verdict.FAIL
    assert worst([]) is Verdict.PASS
