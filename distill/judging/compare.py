"""Does one recipe make better students than another? Several students of each, on the same tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.drop import balanced_accuracy
from atlas_edge.bench.accuracy.probe import ProbeMethod, fit_probe
from atlas_edge.bench.accuracy.tileset import TileSet
from atlas_edge.bench.interval import Interval, class_mean_interval, over_replicates
from atlas_edge.distill.judging.evaluate import embed, labelled_tiles
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError

_METHODS: tuple[ProbeMethod, ...] = ("linear", "knn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One probe on both groups of students, each student with a probe of its own.

    Attributes:
        method: `linear` or `knn`.
        scores: Balanced accuracy of each student, 0-1.
        other_scores: The same of each student of the other recipe.
        advantage_pp: Mean of the first minus mean of the second, percentage points, with its 95 % interval: a paired
            bootstrap over the tiles, given these students: what is known of them, not of their recipes.
        recipe_advantage_pp: The same mean with an interval over tiles and students (`over_replicates`); None where
            neither side has several students. Sides of the same number are taken for pairs of a seed each.
    """

    method: ProbeMethod
    scores: tuple[float, ...]
    other_scores: tuple[float, ...]
    advantage_pp: Interval
    recipe_advantage_pp: Interval | None


def compare(
    students: Sequence[Encoder],
    against: Sequence[Encoder],
    *,
    fit: str,
    tiles: str | None,
    fit_limit: int = 1_500,
    limit: int = 2_000,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Compare students of one recipe (several seeds, say) with those of another.

    Args:
        students: Of the recipe that is judged.
        against: Of the other one; where there are as many, in the same order of seeds.
        fit: Labelled tiles to fit probes on (their `train` split).
        tiles: Labelled tiles to test on (their `test` split); see `labelled_tiles`.
        fit_limit: Most tiles to fit on.
        limit: Most tiles to test on.
        seed: Seed of the bootstrap.

    Raises:
        InputError: Tiles without labels, the same ones to fit and to test on, or a label among the tested that was not
            fitted.
    """
    fitted, tested = labelled_tiles(fit, tiles, fit_limit=fit_limit, limit=limit)
    features = [[(embed(one, fitted), embed(one, tested)) for one in group] for group in (students, against)]
    truth = np.array(tested.labels)
    classes = np.unique(truth)
    if not set(classes) <= set(fitted.labels or ()):
        raise InputError("a label of the tested tiles does not occur among those to fit on")
    found = []
    for method in _METHODS:
        right = [np.stack([_right(method, pair, fitted, truth) for pair in group]) for group in features]
        scores = [tuple(balanced_accuracy(row, truth) for row in group) for group in right]
        interval = class_mean_interval(
            right[0].mean(0) - right[1].mean(0),
            np.searchsorted(classes, truth),
            tested.group_numbers,
            discrete=len(students) == len(against) == 1,
            seed=seed,
        )
        interval = interval.scaled(100)
        found.append(
            Comparison(
                method=method,
                scores=scores[0],
                other_scores=scores[1],
                advantage_pp=interval,
                recipe_advantage_pp=_over_students(interval, *(100 * np.array(group) for group in scores)),
            )
        )
    return tuple(found)


def _over_students(interval: Interval, scores: NDArray[np.float64], others: NDArray[np.float64]) -> Interval | None:
    if len(scores) == len(others) == 1:
        return None
    return over_replicates(interval, *([scores - others] if len(scores) == len(others) else [scores, others]))


def _right(
    method: ProbeMethod,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    fitted: TileSet,
    truth: NDArray[np.str_],
) -> NDArray[np.float64]:
    probe = fit_probe(method, features[0], np.array(fitted.labels))
    guessed = np.array(probe.classes)[probe.probabilities(features[1]).argmax(axis=1)]
    right: NDArray[np.float64] = (guessed == truth).astype(np.float64)
    return right
