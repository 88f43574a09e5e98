"""Two reports: what moved beyond noise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import CONFIDENCE, Interval, mean_interval
from atlas_edge.bench.report.schema import Report

# A model file written anew differs by its paths and dates: a hundredth is no regression.
_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """One figure in both reports.

    Attributes:
        encoder: Its label, the same in both.
        figure: What was measured, with its unit.
        old: Before, with its 95 % interval where there is one.
        new: After.
        change: New minus old; for ratios new over old.
        moved: The interval of the change excludes no change.
        worse: It moved to the worse.
    """

    encoder: str
    figure: str
    old: Interval
    new: Interval
    change: Interval
    moved: bool
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All figures that both reports hold.

    Attributes:
        movements: In the order of the new report.
        notes: What makes the two less comparable.
    """

    movements: tuple[Movement, ...]
    notes: tuple[str, ...]


def compare_reports(old: Report, new: Report) -> Comparison:
    """Compare the figures of encoders with the same labels.

    Two runs are taken as independent: the half-widths of their intervals add as squares (for ratios on the
    logarithmic scale). Where both compared the same tiles, that overstates the noise of accuracy figures, as tiles
    that are hard once are hard again; cosines are therefore compared tile by tile. Speed is compared by its ratio to
    the reference that ran beside it, never by absolute figures of different hours. Sizes have no noise; what moves by
    less than 1 % is left alone.

    Every figure is judged at 95 % by itself: of forty that did not move one looks worse by chance, as the notes say.
    """
    movements = [movement for label in new.encoders if label in old.encoders for movement in _encoder(old, new, label)]
    return Comparison(movements=tuple(movements), notes=(*_notes(old, new), *_by_chance(movements)))


def _encoder(old: Report, new: Report, label: str) -> Iterable[Movement]:
    yield from _accuracy(old, new, label)
    yield from _speed(old, new, label)
    before, after = old.encoders[label].size_bytes, new.encoders[label].size_bytes
    if before is not None and after is not None:
        yield _difference(
            label, "model files, MB", _exact(before / 1e6), _exact(after / 1e6), least=_SIZE_TOLERANCE * before / 1e6
        )


def _accuracy(old: Report, new: Report, label: str) -> Iterable[Movement]:
    before = None if old.accuracy is None else old.accuracy.candidates.get(label)
    after = None if new.accuracy is None else new.accuracy.candidates.get(label)
    if before is None or after is None:
        return
    for one in after.drops:
        other = before.drop(one.method, refitted=one.refitted)
        if other is not None:
            probe = f"{one.method}{', refitted' if one.refitted else ''}"
            yield _difference(label, f"{probe} drop, pp", other.interval, one.interval)
            flips = (other.flip_interval.scaled(100), one.flip_interval.scaled(100))
            yield _difference(label, f"{probe} changed predictions, %", *flips)
    if before.agreement is not None and after.agreement is not None:
        p1 = (before.agreement.cosine_p1_interval, after.agreement.cosine_p1_interval)
        yield _difference(label, "cosine, 1st percentile", *p1, higher_is_worse=False)
        if _same_tiles(old, new) and len(before.cosines) == len(after.cosines):
            yield _paired_cosines(label, np.asarray(before.cosines), np.asarray(after.cosines))
    if before.robustness_drop is not None and after.robustness_drop is not None:
        yield _difference(label, "robustness index drop", before.robustness_drop, after.robustness_drop)


def _speed(old: Report, new: Report, label: str) -> Iterable[Movement]:
    before = None if old.speed is None else old.speed.encoders.get(label)
    after = None if new.speed is None else new.speed.encoders.get(label)
    if before is None or after is None:
        return
    pairs = (
        ("throughput over the reference", before.throughput_ratio, after.throughput_ratio),
        ("latency: reference over this", before.latency_ratio, after.latency_ratio),
    )
    for figure, first, second in pairs:
        if first is not None and second is not None:
            yield _ratio(label, figure, first, second)


def _difference(
    label: str, figure: str, old: Interval, new: Interval, *, higher_is_worse: bool = True, least: float = 0.0
) -> Movement:
    # Each side by the end that faces the other: intervals of quantiles are not symmetric.
    up = math.hypot(new.high - new.estimate, old.estimate - old.low)
    down = math.hypot(new.estimate - new.low, old.high - old.estimate)
    estimate = new.estimate - old.estimate
    change = Interval(estimate=estimate, low=estimate - down, high=estimate + up, units=new.units, unit=new.unit)
    found = _movement(label, figure, old, new, change, still=0.0, higher_is_worse=higher_is_worse)
    return found if abs(estimate) > least else replace(found, moved=False, worse=False)


def _ratio(label: str, figure: str, old: Interval, new: Interval) -> Movement:
    logs = [
        Interval(
            estimate=math.log(one.estimate),
            low=math.log(one.low),
            high=math.log(one.high),
            units=one.units,
            unit=one.unit,
        )
        for one in (old, new)
    ]
    found = _difference(label, figure, *logs).change
    change = Interval(
        estimate=math.exp(found.estimate),
        low=math.exp(found.low),
        high=math.exp(found.high),
        units=found.units,
        unit=found.unit,
    )
    return _movement(label, figure, old, new, change, still=1.0, higher_is_worse=False)


def _paired_cosines(label: str, old: NDArray[np.float64], new: NDArray[np.float64]) -> Movement:
    change = mean_interval(new - old)
    means = (_exact(float(old.mean()), len(old)), _exact(float(new.mean()), len(new)))
    figure = "cosine, mean of the same tiles"
    return _movement(label, figure, *means, change, still=0.0, higher_is_worse=False)


def _movement(
    label: str, figure: str, old: Interval, new: Interval, change: Interval, *, still: float, higher_is_worse: bool
) -> Movement:
    moved = change.low > still or change.high < still
    worse = moved and (change.estimate > still) == higher_is_worse
    return Movement(encoder=label, figure=figure, old=old, new=new, change=change, moved=moved, worse=worse)


def _exact(value: float, units: int = 1) -> Interval:
    return Interval(estimate=value, low=value, high=value, units=units)


def _same_tiles(old: Report, new: Report) -> bool:
    before, after = old.evaluation, new.evaluation
    return before is not None and after is not None and before.fingerprint == after.fingerprint


def _by_chance(movements: list[Movement]) -> Iterable[str]:
    noisy = sum(one.change.high > one.change.low for one in movements)
    if any(one.worse for one in movements) and noisy > 1:
        yield (
            f"{noisy} figures were compared, each at 95 %: about {noisy * (1 - CONFIDENCE) / 2:.1f} of them look worse "
            "by chance alone; measure again what is not expected"
        )


def _notes(old: Report, new: Report) -> Iterable[str]:
    for labels, text in (
        ([name for name in old.encoders if name not in new.encoders], "only in the old report"),
        ([name for name in new.encoders if name not in old.encoders], "only in the new report"),
    ):
        if labels:
            yield f"{text}: {', '.join(labels)}"
    if old.accuracy is not None and new.accuracy is not None:
        if not _same_tiles(old, new):
            yield "the reports compared other tiles: a change of an accuracy figure may be that of the tiles"
        if old.accuracy.reference != new.accuracy.reference:
            yield f"other references: {old.accuracy.reference} and {new.accuracy.reference}"
    if old.speed is not None and new.speed is not None and old.machine.cpu != new.machine.cpu:
        yield f"other processors ({old.machine.cpu}; {new.machine.cpu}): a ratio may change with them"
    changed = {
        name: (old.machine.versions.get(name), version)
        for name, version in new.machine.versions.items()
        if old.machine.versions.get(name) != version
    }
    if changed:
        yield "other versions: " + ", ".join(f"{name} {one} -> {two}" for name, (one, two) in changed.items())
