import math

import pytest

from atlas_edge.bench.gate import Verdict, judge, units_to_settle, worst
from atlas_edge.bench.interval import Interval


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


def test_worst_verdict_wins() -> None:
    assert worst([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert worst([Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]) is Verdict.FAIL
    assert worst([]) is Verdict.PASS
