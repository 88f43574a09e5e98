"""The gate: judges the unfavourable end of an interval against a budget."""

import math
from enum import StrEnum

from atlas_edge.bench.interval import Interval


class Verdict(StrEnum):
    """PASS only when the whole interval keeps the budget; FAIL only when all of it misses; INCONCLUSIVE between."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


def judge(interval: Interval, budget: float, *, higher_is_worse: bool = True) -> Verdict:
    """Judge a measured figure.

    Args:
        interval: The figure, in the budget's unit.
        budget: The most that is allowed (`higher_is_worse`), or the least.
        higher_is_worse: True for a drop or flips, False for a cosine.
    """
    low, high = (interval.low, interval.high) if higher_is_worse else (-interval.high, -interval.low)
    limit = budget if higher_is_worse else -budget
    if high <= limit:
        return Verdict.PASS
    # A NaN anywhere passes nothing.
    return Verdict.FAIL if low > limit or math.isnan(high) else Verdict.INCONCLUSIVE


def units_to_settle(interval: Interval, budget: float) -> int | None:
    """How many units would settle an inconclusive verdict, were the estimate to stay where it is.

    An interval's width shrinks with the square root of the number of units.

    Returns:
        The number of units (in `interval.unit`), or None where the estimate lies on the budget and no number would.
    """
    above = interval.estimate > budget
    # The end that straddles the budget: intervals of quantiles are not symmetric.
    width = interval.estimate - interval.low if above else interval.high - interval.estimate
    distance = abs(interval.estimate - budget)
    if distance == 0 or not math.isfinite(width):
        return None
    return math.ceil(interval.units * (width / distance) ** 2)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The verdict over several checks: FAIL beats INCONCLUSIVE beats PASS."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS
