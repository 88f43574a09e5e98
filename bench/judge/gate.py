"""The gate: judges the unfavourable end of an interval against a budget, and passes nothing on a handful of slides."""

import math
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import CONFIDENCE, FEWEST_GROUPS, Interval


class Verdict(StrEnum):
    """PASS only when the whole interval keeps the budget; FAIL only when all of it misses; INCONCLUSIVE between.

    Fewer slides than `FEWEST_GROUPS` are INCONCLUSIVE, however well they do.
    """

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
        return Verdict.INCONCLUSIVE if too_few_groups(interval) else Verdict.PASS
    # A NaN anywhere passes nothing.
    return Verdict.FAIL if low > limit or math.isnan(high) else Verdict.INCONCLUSIVE


def too_few_groups(interval: Interval) -> bool:
    """Whether the units are fewer slides than a gate passes on; not where nothing is in doubt."""
    return interval.unit == "group" and interval.units < FEWEST_GROUPS and interval.high > interval.low


def units_to_settle(interval: Interval, budget: float) -> int | None:
    """How many units would settle an inconclusive verdict, were the estimate to stay where it is.

    An interval's width shrinks with the square root of the number of units; see `units_to_settle_quantile` for those of
    quantiles.

    Returns:
        The number of units (in `interval.unit`), or None where the estimate lies on the budget and no number would.
    """
    above = interval.estimate > budget
    # The end that straddles the budget: intervals of quantiles are not symmetric.
    width = interval.estimate - interval.low if above else interval.high - interval.estimate
    distance = abs(interval.estimate - budget)
    if distance == 0 or not math.isfinite(width):
        return None
    units = math.ceil(interval.units * (width / distance) ** 2)
    return max(units, FEWEST_GROUPS) if interval.unit == "group" else units


def units_to_settle_quantile(
    values: NDArray[np.float64], quantile: float, budget: float, interval: Interval, effective: float
) -> int | None:
    """The same for the budget on a low quantile, were the share of tiles below the budget to stay where it is.

    The quantile keeps the budget where that share is below `quantile`: what is asked is how many tiles tell the two
    apart, and for fewest of them 0.025 = (1 - quantile)^n (368 for the 1st percentile).

    Args:
        values: `(N,)` per-tile values.
        quantile: 0-1.
        budget: The least that the quantile may be.
        interval: From `quantile_interval`.
        effective: From `effective_tiles`.
    """
    share = float((values < budget).mean())
    if share == quantile:
        return None
    tail = (1 - CONFIDENCE) / 2
    tiles = math.log(tail) / math.log1p(-quantile)
    if share > 0:
        tiles = max(tiles, NormalDist().inv_cdf(tail) ** 2 * quantile * (1 - quantile) / (share - quantile) ** 2)
    units = math.ceil(tiles * interval.units / effective)
    return max(units, FEWEST_GROUPS) if interval.unit == "group" else units


def worst(verdicts: list[Verdict]) -> Verdict:
    """The verdict over several checks: FAIL beats INCONCLUSIVE beats PASS."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS
