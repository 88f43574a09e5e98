"""Confidence intervals: what a paired comparison knows, and how well."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
CONFIDENCE = 0.95

# Agresti and Min (2005): half a discordant pair each way keeps the interval honest where flips are rare.
_PSEUDO_PAIRS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its two-sided 95 % confidence interval, in the estimate's own unit.

    Attributes:
        estimate: The figure as measured on all units.
        low: Lower end.
        high: Upper end.
        units: How many independent units were resampled.
        unit: What one unit is: `tile`, `group` (slide or patient) or `round` (of a timing run).
    """

    estimate: float
    low: float
    high: float
    units: int
    unit: str = "tile"

    def scaled(self, factor: float) -> "Interval":
        """The same interval in another unit (`factor` > 0), such as 100 for shares to percentage points."""
        return Interval(
            estimate=self.estimate * factor,
            low=self.low * factor,
            high=self.high * factor,
            units=self.units,
            unit=self.unit,
        )


def class_mean_interval(
    values: NDArray[np.float64],
    classes: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    *,
    discrete: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Interval of the mean over classes of the per-class mean: a paired difference of balanced accuracies.

    With `values` = correct(reference) - correct(candidate) per tile this is the accuracy drop. Units (tiles, or
    groups where given) are resampled as a whole, so both encoders always see the same tiles. The interval is
    estimate ± t(units - 1) · sqrt(bootstrap variance · units / (units - 1) + 1 / tiles²).

    Why this bootstrap: it was chosen by simulation (tests/bench/test_bench_interval.py holds the scenarios: 40 to 2,000
    tiles, 2 to 9 classes, 0.5 to 20 % discordant pairs, 8 to 40 slides). Percentile and BCa intervals covered 83-96 %
    (they know nothing of flips that did not occur and too little of slides where those are few), the equal-tailed
    studentised bootstrap 74-96 %, this one 94-97 %; with three discordant pairs expected in all it errs to the safe
    side, at 98 %. The term 1 / tiles² is half a discordant pair each way (Agresti & Min, Statistics in Medicine 24,
    2005).

    Args:
        values: `(N,)` per-tile values, usually -1, 0 or 1.
        classes: `(N,)` class numbers; each class weighs the same.
        groups: `(N,)` slide or patient numbers; tiles are the units when None.
        discrete: Values are -1, 0 or 1; continuous values need no term for pairs that did not occur.
        seed: Seed of the resampling.
        resamples: Bootstrap resamples.
    """
    sums, counts = _per_unit(values, classes, groups)
    tiles = len(values)
    unit_types, multiplicity = np.unique(np.concatenate([sums, counts], axis=1), axis=0, return_counts=True)
    units = int(multiplicity.sum())
    type_sums, type_counts = np.split(unit_types, 2, axis=1)
    estimate = float(_class_mean(multiplicity[None, :].astype(np.float64), type_sums, type_counts)[0])
    # Equal units are interchangeable: resampling how often each type is drawn is the same bootstrap, only faster.
    weights = np.random.default_rng(seed).multinomial(units, multiplicity / units, size=resamples).astype(np.float64)
    variance = float(np.var(_class_mean(weights, type_sums, type_counts)))
    if units > 1:
        variance *= units / (units - 1)
    unseen = 2 * _PSEUDO_PAIRS / tiles**2 if discrete else 0.0
    half = _student_t(units - 1) * math.sqrt(variance + unseen)
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        units=units,
        unit="tile" if groups is None else "group",
    )


def over_replicates(interval: Interval, *replicates: NDArray[np.float64]) -> Interval:
    """The same estimate's interval over replicates, too, such as students of several seeds, judged on the same units.

    The variance is that over the units, given these replicates, and s² / n of each set of n replicates; degrees of
    freedom after Welch (Biometrika 34, 1947) and Satterthwaite (Biometrics Bulletin 2, 1946). What replicates and units
    do together is in both parts: the interval errs to the safe side.

    Args:
        interval: Over the units, from `class_mean_interval`.
        replicates: `(n,)` figures of single replicates whose mean enters the estimate, in its unit: differences of
            pairs, or the figures of either side. A set of one tells nothing of its spread and is passed over.
    """
    if interval.units < 2:
        return interval
    parts = [((interval.high - interval.low) / 2 / _student_t(interval.units - 1)) ** 2]
    degrees = [interval.units - 1]
    for figures in replicates:
        if len(figures) > 1:
            parts.append(float(np.var(figures, ddof=1)) / len(figures))
            degrees.append(len(figures) - 1)
    variance = sum(parts)
    shares = sum(part**2 / count for part, count in zip(parts, degrees, strict=True))
    half = _student_t(variance**2 / shares) * math.sqrt(variance) if shares else 0.0
    return Interval(
        estimate=interval.estimate,
        low=interval.estimate - half,
        high=interval.estimate + half,
        units=interval.units,
        unit=interval.unit,
    )


def share_interval(events: NDArray[np.bool_], groups: NDArray[np.int64] | None = None, *, seed: int = 0) -> Interval:
    """Interval of the share of tiles for which an event happened, clipped to 0-1; see `class_mean_interval`."""
    found = class_mean_interval(events.astype(np.float64), np.zeros(len(events), np.int64), groups, seed=seed)
    return Interval(
        estimate=found.estimate,
        low=max(0.0, found.low),
        high=min(1.0, found.high),
        units=found.units,
        unit=found.unit,
    )


def mean_interval(values: NDArray[np.float64], groups: NDArray[np.int64] | None = None, *, seed: int = 0) -> Interval:
    """Interval of the mean of a continuous figure per tile; see `class_mean_interval`."""
    return class_mean_interval(values, np.zeros(len(values), np.int64), groups, discrete=False, seed=seed)


def share_difference_interval(
    first: tuple[NDArray[np.int64], NDArray[np.int64]],
    second: tuple[NDArray[np.int64], NDArray[np.int64]],
    groups: NDArray[np.int64] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Interval of Σhits / Σtotal of the first minus that of the second, both counted per tile of the same tiles.

    Args:
        first: `(N,)` hits and `(N,)` totals.
        second: The same of the other encoder.
        groups: `(N,)` group numbers; tiles are the units when None.
        seed: Seed of the resampling.
        resamples: Bootstrap resamples.
    """
    unit_of = np.arange(len(first[0])) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(unit_of.max()) + 1
    counts = np.stack([np.bincount(unit_of, weights=column, minlength=units) for column in (*first, *second)], axis=1)
    weights = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    drawn = _share_difference(weights.astype(np.float64) @ counts)
    estimate = float(_share_difference(counts.sum(axis=0)[None])[0])
    variance = float(np.nanvar(drawn)) * (units / (units - 1) if units > 1 else 1.0)
    half = _student_t(units - 1) * math.sqrt(variance)
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        units=units,
        unit="tile" if groups is None else "group",
    )


def geometric_mean_interval(ratios: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interval of the geometric mean of paired ratios (rounds of a timing run), on the logarithmic scale.

    Args:
        ratios: `(R,)` positive ratios, one a round.
        seed: Seed of the resampling.
        resamples: Bootstrap resamples.
    """
    logs = np.log(ratios)
    rounds = len(logs)
    drawn = np.random.default_rng(seed).integers(0, rounds, size=(resamples, rounds))
    deviation = float(np.std(logs[drawn].mean(axis=1)))
    if rounds > 1:
        deviation *= math.sqrt(rounds / (rounds - 1))
    centre, half = float(logs.mean()), _student_t(rounds - 1) * deviation
    return Interval(
        estimate=math.exp(centre),
        low=math.exp(centre - half),
        high=math.exp(centre + half),
        units=rounds,
        unit="round",
    )


def quantile_interval(
    values: NDArray[np.float64],
    quantile: float,
    groups: NDArray[np.int64] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile-bootstrap interval of a quantile, such as the 1st percentile of the cosines.

    Args:
        values: `(N,)` per-tile values.
        quantile: 0-1.
        groups: `(N,)` group numbers; tiles are the units when None.
        seed: Seed of the resampling.
        resamples: Bootstrap resamples.
    """
    order = np.argsort(values, kind="stable")
    units_of = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(units_of.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for start in range(0, resamples, 250):  # bounds memory at 250 x N weights
        size = min(250, resamples - start)
        weights = rng.multinomial(units, np.full(units, 1 / units), size=size)[:, units_of[order]]
        cumulative = np.cumsum(weights, axis=1)
        rank = quantile * (cumulative[:, -1:] - 1)
        drawn[start : start + size] = values[order][np.argmax(cumulative > rank, axis=1)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(
        estimate=float(np.quantile(values, quantile)),
        low=float(low),
        high=float(high),
        units=units,
        unit="tile" if groups is None else "group",
    )


def _per_unit(
    values: NDArray[np.float64], classes: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, class_of = np.unique(classes, return_inverse=True)
    unit_of = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    shape = (int(unit_of.max()) + 1, int(class_of.max()) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (unit_of, class_of), values)
    np.add.at(counts, (unit_of, class_of), 1.0)
    return sums, counts


def _class_mean(
    weights: NDArray[np.float64], sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over the classes present in each weighting; `weights` is `(R, types)`."""
    tiles = weights @ counts
    present = tiles > 0
    means = np.where(present, weights @ sums / np.maximum(tiles, 1.0), 0.0)
    result: NDArray[np.float64] = means.sum(axis=1) / present.sum(axis=1)
    return result


def _share_difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(R, 4)` sums of hits and totals of both -> `(R,)`; NaN where a resample has no totals."""
    totals = np.where(sums[:, [1, 3]] > 0, sums[:, [1, 3]], np.nan)
    difference: NDArray[np.float64] = sums[:, 0] / totals[:, 0] - sums[:, 2] / totals[:, 1]
    return difference


def _student_t(degrees: float) -> float:
    from scipy import stats

    # One unit says nothing about spread between units.
    return math.inf if degrees < 1 else float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
