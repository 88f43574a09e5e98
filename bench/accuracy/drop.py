"""The accuracy drop: the reference's score minus the candidate's, on the same tiles, with a paired interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.probe import Probe, ProbeMethod, fit_probe
from atlas_edge.bench.interval import Interval, class_mean_interval, exact_interval, share_interval
from atlas_edge.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyDrop:
    """What a classifier on top of the encoder loses when the encoder is replaced by the candidate.

    Attributes:
        method: `linear` or `knn` (`bench.probe` names their fixed settings).
        refitted: False when one probe, fitted on the reference's embeddings, was tested on both (a deployed
            classifier is not retrained); True when the candidate got a probe of its own.
        reference_score: Balanced accuracy of the reference, 0-1.
        candidate_score: Balanced accuracy of the candidate, 0-1.
        drop_pp: reference - candidate, percentage points; negative when the candidate is better.
        low_pp: Lower end of the 95 % interval.
        high_pp: Upper end: what a gate judges.
        flips: Share of tiles whose predicted class changed, 0-1.
        flips_low: Lower end of its interval.
        flips_high: Upper end of its interval.
        reference_calibration_error: Expected calibration error of the reference, 0-1 (15 equal bins, Guo et al. 2017).
        candidate_calibration_error: The same of the candidate.
        tiles: Tiles tested.
        units: Independent units that were resampled.
        unit: `group` (slide or patient), or `tile` where no groups are known (the interval is then too narrow when
            tiles of one slide resemble one another).
        classes: Labels that were scored.
    """

    method: ProbeMethod
    refitted: bool
    reference_score: float
    candidate_score: float
    drop_pp: float
    low_pp: float
    high_pp: float
    flips: float
    flips_low: float
    flips_high: float
    reference_calibration_error: float
    candidate_calibration_error: float
    tiles: int
    units: int
    unit: str
    classes: tuple[str, ...]

    @property
    def interval(self) -> Interval:
        """The drop in percentage points, as the gate takes it."""
        return Interval(estimate=self.drop_pp, low=self.low_pp, high=self.high_pp, units=self.units, unit=self.unit)

    @property
    def flip_interval(self) -> Interval:
        """The share of flipped predictions (0-1), as the gate takes it."""
        return Interval(estimate=self.flips, low=self.flips_low, high=self.flips_high, units=self.units, unit=self.unit)


def accuracy_drop(
    *,
    fit_features: NDArray[np.float32],
    fit_labels: Sequence[str] | NDArray[np.str_],
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    labels: Sequence[str] | NDArray[np.str_],
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    method: ProbeMethod = "linear",
    candidate_fit_features: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> AccuracyDrop:
    """Score both encoders' embeddings of the same tiles with a probe fitted on the reference's embeddings.

    The interval is a paired bootstrap by group (see `class_mean_interval`). It is conditional on the fitted probe: it
    says how the drop would vary over tiles, not over probes. Candidates that equal the reference bit for bit get
    exactly 0 with no uncertainty.

    Args:
        fit_features: `(M, D)` embeddings by the reference of tiles that are disjoint from those tested.
        fit_labels: `(M,)` their labels.
        reference: `(N, D)` embeddings of the tiles tested, by the reference.
        candidate: `(N, D)` embeddings of the same tiles, by the candidate.
        labels: `(N,)` their labels, all of which occur in `fit_labels`.
        groups: `(N,)` slides or patients; tiles are resampled when None.
        method: `linear` or `knn`.
        candidate_fit_features: `(M, D)` embeddings by the candidate of the tiles to fit on: the candidate then gets a
            probe of its own (`refitted`).
        seed: Seed of the bootstrap.

    Raises:
        InputError: Lengths that differ, a label that was not fitted, or embeddings that are not finite.
    """
    fit_names = np.asarray(fit_labels, dtype=np.str_)
    probe = fit_probe(method, fit_features, fit_names)
    own = None if candidate_fit_features is None else fit_probe(method, candidate_fit_features, fit_names)
    return drop_with_probes(
        probe,
        own,
        reference=reference,
        candidate=candidate,
        labels=labels,
        groups=groups,
        method=method,
        seed=seed,
    )


def drop_with_probes(
    probe: Probe,
    own_probe: Probe | None,
    *,
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    labels: Sequence[str] | NDArray[np.str_],
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    method: ProbeMethod = "linear",
    seed: int = 0,
) -> AccuracyDrop:
    """The same with probes that are already fitted, so that several candidates share the reference's.

    Args:
        probe: Fitted on the reference's embeddings.
        own_probe: Fitted on the candidate's; None tests the candidate with the reference's probe.
        reference: See `accuracy_drop`, as the other arguments.
        candidate: As there.
        labels: As there.
        groups: As there.
        method: As there.
        seed: As there.

    Raises:
        InputError: See `accuracy_drop`.
    """
    names = np.asarray(labels, dtype=np.str_)
    _check(probe.classes, names, reference, candidate, groups)
    own = probe if own_probe is None else own_probe
    truth = np.searchsorted(np.asarray(probe.classes), names)
    reference_odds = probe.probabilities(reference)
    candidate_odds = own.probabilities(candidate)
    # Equal to the last bit in embeddings and in what the probes make of them: the same encoder.
    identical = np.array_equal(reference, candidate) and np.array_equal(reference_odds, candidate_odds)
    before, after = reference_odds.argmax(axis=1), candidate_odds.argmax(axis=1)
    group_of = None if groups is None else np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
    lost = (before == truth).astype(np.float64) - (after == truth).astype(np.float64)
    drop = class_mean_interval(lost, truth, group_of, seed=seed).scaled(100)
    flips = share_interval(before != after, group_of, seed=seed)
    if identical:
        drop, flips = exact_interval(0.0, drop), exact_interval(0.0, flips)
    return AccuracyDrop(
        method=method,
        refitted=own_probe is not None,
        reference_score=balanced_accuracy(before == truth, truth),
        candidate_score=balanced_accuracy(after == truth, truth),
        drop_pp=drop.estimate,
        low_pp=drop.low,
        high_pp=drop.high,
        flips=flips.estimate,
        flips_low=flips.low,
        flips_high=flips.high,
        reference_calibration_error=calibration_error(reference_odds, truth),
        candidate_calibration_error=calibration_error(candidate_odds, truth),
        tiles=len(names),
        units=drop.units,
        unit=drop.unit,
        classes=tuple(str(name) for name in np.unique(names)),
    )


def balanced_accuracy(right: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean over the classes in `truth`, names or codes, of the share of their tiles that are `right`, 0-1."""
    return float(np.mean([right[truth == code].mean() for code in np.unique(truth)]))


def calibration_error(probabilities: NDArray[np.float64], truth: NDArray[np.int64], *, bins: int = 15) -> float:
    """Expected calibration error, 0-1: mean |accuracy - confidence| over equal-width bins of the top confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def _check(
    fitted: tuple[str, ...],
    labels: NDArray[np.str_],
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    groups: Sequence[str] | NDArray[np.str_] | None,
) -> None:
    lengths = {len(labels), len(reference), len(candidate), *([] if groups is None else [len(groups)])}
    if len(lengths) != 1 or not len(labels):
        raise InputError(
            f"{len(reference)} reference and {len(candidate)} candidate embeddings, {len(labels)} labels, "
            f"{'no' if groups is None else len(groups)} groups: expected one of each a tile"
        )
    unknown = sorted(set(labels.tolist()) - set(fitted))
    if unknown:
        raise InputError(
            f"evaluation class {unknown[0]!r} does not occur among the tiles to fit on ({', '.join(fitted)})",
            hint="fit the probe on tiles of the same classes: --fit, or where there is none the tiles that calibrate",
        )
