"""Confidence intervals: what a paired comparison knows, and how well."""

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
CONFIDENCE = 0.95

FEWEST_GROUPS = 36
"""Fewest slides (or patients) on which a gate passes.

Of a kind of slide that is one in ten, as a scanner or a stain may be, 36 slides drawn at random hold none in 2.3 % of
cases.
"""

# Agresti and Min (2005): half a discordant pair each way keeps the interval honest where flips are rare.
_PSEUDO_PAIRS = 0.5
# Flips that did not occur are thought of as coming by slides: so much of a slide's tiles would go together.
_TOGETHER = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its two-sided 95 % confidence interval, in the estimate's own unit.

    Attributes:
        estimate: The figure as measured on all units.
        low: Lower end.
        high: Upper end.
        units: How many independent units were resampled.
        unit: What one unit is: `tile`, `group` (slide or patient), `position` (on registered scans) or `round` (of a
            timing run).
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
    estimate ± t(units - 1) · sqrt(bootstrap variance · units / (units - 1) + 1 / n²), where n is the number of tiles,
    or of as many independent ones as the groups are worth: tiles / (1 + (tiles a group - 1) / 3) (Kish, Survey
    Sampling, 1965, with an intraclass correlation of 1/3).

    Why this bootstrap: it was chosen by simulation (tests/bench/test_bench_interval.py holds the scenarios: 40 to 2,000
    tiles, 2 to 9 classes, 0.5 to 20 % discordant pairs, 8 to 100 slides). Percentile and BCa intervals covered 83-96 %
    (they know nothing of flips that did not occur and too little of slides where those are few), the equal-tailed
    studentised bootstrap 74-96 %, this one 94-97 % by tile; with three discordant pairs expected in all it errs to the
    safe side, at 98 %. The term 1 / n² is half a discordant pair each way (Agresti & Min, Statistics in Medicine 24,
    2005). By slide it errs to the safe side where slides fail mildly, and covers 96-100 % where one in ten loses a
    fifth of its tiles. A slide that is rarer, or fails more, may not have been seen: no interval knows of it.

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
    sizes = counts.sum(axis=1)
    together = 1 + (float(sizes @ sizes) / tiles - 1) * _TOGETHER
    unseen = 2 * _PSEUDO_PAIRS * (together / tiles) ** 2 if discrete else 0.0
    half = _student_t(units - 1) * math.sqrt(variance + unseen)
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        units=units,
        unit="tile" if groups is None else "group",
    )


def exact_interval(value: float, interval: Interval) -> Interval:
    """A value that is known without doubt, such as the drop of an encoder that is equal bit for bit."""
    return Interval(estimate=value, low=value, high=value, units=interval.units, unit=interval.unit)


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
    return drawn_interval(estimate, drawn, units=units, unit="tile" if groups is None else "group")


def drawn_interval(estimate: float, drawn: NDArray[np.float64], *, units: int, unit: str) -> Interval:
    """Interval by a bootstrap's variance: estimate ± t(units - 1) · sqrt(variance · units / (units - 1)).

    Args:
        estimate: Of all units.
        drawn: `(R,)` the same of each resample; NaN where it had none.
        units: How many were resampled.
        unit: See `Interval`.
    """
    variance = float(np.nanvar(drawn)) * (units / (units - 1) if units > 1 else 1.0)
    half = _student_t(units - 1) * math.sqrt(variance)
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, units=units, unit=unit)


def geometric_mean_interval(ratios: NDArray[np.float64]) -> Interval:
    """Student's t interval of the geometric mean of paired ratios (rounds of a timing run), on the logarithmic scale.

    Args:
        ratios: `(R,)` positive ratios, one a round.
    """
    logs = np.log(ratios)
    rounds = len(logs)
    centre = float(logs.mean())
    half = math.inf if rounds < 2 else _student_t(rounds - 1) * float(np.std(logs, ddof=1)) / math.sqrt(rounds)
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
    least: float = -1.0,
) -> Interval:
    """Distribution-free interval of a low quantile, such as the 1st percentile of the cosines, by order statistics.

    Of n tiles, the number below the quantile is binomial, whatever the distribution: the ends are the tiles whose ranks
    are its 2.5th and (one more than) its 97.5th percentile. Of fewer than 368 tiles even the worst is no lower end of
    the 1st percentile, as all may lie above it (0.99^367 > 0.025): `low` is then `least`. Where groups are known, n is
    the number of independent tiles that they are worth (`effective_tiles`), and `low` is `least` below
    `FEWEST_GROUPS`, too. Coverage by simulation: tests/bench/test_bench_quantile.py.

    Source: Conover, Practical Nonparametric Statistics, 3.2; by group Woodruff, JASA 47, 1952.

    Args:
        values: `(N,)` per-tile values.
        quantile: 0-1.
        groups: `(N,)` group numbers; tiles are the units when None.
        least: The lowest value possible.
    """
    tiles, ordered = len(values), np.sort(values)
    effective = effective_tiles(values, quantile, groups)
    whole = max(1, math.floor(effective))
    below, above = (_binomial_quantile(tail, whole, quantile) for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    units = tiles if groups is None else len(np.unique(groups))
    known = below > 0 and (groups is None or units >= FEWEST_GROUPS)
    estimate = float(np.quantile(ordered, quantile))
    # Ranks among the effective tiles, as ranks among all of them.
    low = float(ordered[math.floor((below - 1) * tiles / effective)]) if known else least
    high = float(ordered[min(tiles, math.ceil((above + 1) * tiles / effective)) - 1])
    return Interval(
        estimate=estimate,
        low=min(low, estimate),
        high=max(high, estimate),
        units=units,
        unit="tile" if groups is None else "group",
    )


def effective_tiles(values: NDArray[np.float64], quantile: float, groups: NDArray[np.int64] | None) -> float:
    """How many independent tiles a grouped set is worth for the share of tiles below a quantile; at most all.

    The share's binomial variance over its variance between groups, and less by what Student's t doubts of the latter
    (Korn & Graubard, Survey Methodology 24, 1998). A handful of tiles lies below the 1st percentile: the share below
    twice the quantile steadies the figure, and the worse of the two counts.
    """
    tiles = len(values)
    if groups is None:
        return float(tiles)
    unit_of = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(unit_of)
    units = len(sizes)
    if units < 2:
        return 1.0
    ordered, worst = np.sort(values), 1.0
    for level in (quantile, 2 * quantile):
        low = values <= ordered[math.ceil(level * tiles) - 1]
        share = float(low.mean())
        if share == 1.0:  # all equal
            continue
        residuals = np.bincount(unit_of, weights=low) - share * sizes
        variance = units / (units - 1) * float(residuals @ residuals) / tiles**2
        worst = max(worst, variance * tiles / (share * (1 - share)))
    return min(float(tiles), tiles / worst * (_student_t(math.inf) / _student_t(units - 1)) ** 2)


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


def _binomial_quantile(tail: float, trials: int, share: float) -> int:
    """The least number of successes that so many trials do not exceed with probability `tail`."""
    drawn = np.arange(1, trials + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((trials - drawn + 1) / drawn))])
    successes = np.arange(trials + 1)
    mass = np.exp(ways + successes * math.log(share) + (trials - successes) * math.log1p(-share))
    return int(np.searchsorted(np.cumsum(mass), tail))


@cache
def _student_t(degrees: float) -> float:
    """The 97.5th percentile of Student's t; a workstation's install has no scipy to ask.

    With t = sqrt(ν) tan θ the density is proportional to cos(θ)^(ν - 1), integrated here by the trapezoidal rule.
    """
    # One unit says nothing about spread between units.
    if degrees < 1:
        return math.inf
    if math.isinf(degrees):
        return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    angles = np.linspace(0, min(math.pi / 2, 40 / math.sqrt(degrees)), 100_001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp(CONFIDENCE * below[-1], below, angles))
