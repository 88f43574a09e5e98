"""Coverage of the paired interval, by simulation with fixed seeds."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.interval import (
    class_mean_interval,
    geometric_mean_interval,
    over_replicates,
    share_interval,
)

Draw = Callable[[np.random.Generator], tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64] | None]]
SIMULATIONS = 600


def _tiles(class_sizes: list[int], lost: list[float], gained: list[float]) -> Draw:
    """Independent tiles: in class k the candidate loses a tile with probability lost[k] and gains with gained[k]."""
    classes = np.repeat(np.arange(len(class_sizes)), class_sizes)

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64], None]:
        u, plus, minus = rng.random(len(classes)), np.array(lost)[classes], np.array(gained)[classes]
        return np.where(u < plus, 1.0, np.where(u < plus + minus, -1.0, 0.0)), classes, None

    return draw


def _slides(slides: int, tiles: int, classes: int, lost: float, gained: float, *, nested: bool) -> Draw:
    """Slides whose own rates scatter (beta), so tiles of a slide resemble one another; nested: one class a slide."""

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        values, labels, groups = [], [], []
        for slide in range(slides):
            plus, minus = rng.beta(30 * lost, 30 * (1 - lost)), rng.beta(30 * gained, 30 * (1 - gained))
            size = max(4, int(rng.poisson(tiles)))
            u = rng.random(size)
            values.append(np.where(u < plus, 1.0, np.where(u < plus + minus, -1.0, 0.0)))
            labels.append(np.full(size, slide % classes) if nested else np.arange(size) % classes)
            groups.append(np.full(size, slide))
        return np.concatenate(values), np.concatenate(labels), np.concatenate(groups)

    return draw


SCENARIOS: dict[str, tuple[Draw, float]] = {
    "40 tiles, 2 classes, 20 % discordant": (_tiles([20] * 2, [0.15] * 2, [0.05] * 2), 0.10),
    "100 tiles, 2 classes, 10 %": (_tiles([50] * 2, [0.06] * 2, [0.04] * 2), 0.02),
    "198 tiles, 9 classes, 5 %": (_tiles([22] * 9, [0.03] * 9, [0.02] * 9), 0.01),
    "300 tiles, unequal classes": (_tiles([60, 90, 150], [0.08, 0.05, 0.03], [0.02] * 3), (0.06 + 0.03 + 0.01) / 3),
    "600 tiles, 5 classes, 1.5 %": (_tiles([120] * 5, [0.01] * 5, [0.005] * 5), 0.005),
    "600 tiles, 5 classes, 4 %": (_tiles([120] * 5, [0.025] * 5, [0.015] * 5), 0.01),
    "600 tiles, 5 classes, large drop": (_tiles([120] * 5, [0.12] * 5, [0.03] * 5), 0.09),
    "2000 tiles, 5 classes, 1 %": (_tiles([400] * 5, [0.007] * 5, [0.003] * 5), 0.004),
}
# By slide: it errs to the safe side where slides fail mildly, as one that fails as a whole may not have been seen.
BY_SLIDE: dict[str, tuple[Draw, float]] = {
    "8 slides of 80": (_slides(8, 80, 2, 0.05, 0.03, nested=False), 0.02),
    "12 slides of 50": (_slides(12, 50, 2, 0.04, 0.02, nested=False), 0.02),
    "24 slides of 30, one class each": (_slides(24, 30, 2, 0.05, 0.02, nested=True), 0.03),
    "100 slides of 20": (_slides(100, 20, 2, 0.05, 0.03, nested=False), 0.02),
}


def _rare(slides: int, tiles: int, *, rare: float = 0.1, failing: float = 0.2) -> tuple[Draw, float]:
    """A kind of slide that is one in ten loses a fifth of its tiles; no other tile is lost."""
    groups = np.repeat(np.arange(slides), tiles)

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        lost = (rng.random(slides) < rare)[groups] & (rng.random(len(groups)) < failing)
        return lost.astype(np.float64), np.arange(len(groups)) % 2, groups

    return draw, rare * failing


def _coverage(draw: Draw, truth: float) -> float:
    rng = np.random.default_rng(20261124)
    hits = 0
    for _ in range(SIMULATIONS):
        values, classes, groups = draw(rng)
        found = class_mean_interval(values, classes, groups, resamples=600)
        hits += found.low <= truth <= found.high
    return hits / SIMULATIONS


@pytest.mark.parametrize("name", SCENARIOS)
def test_paired_interval_covers_the_known_drop_in_93_to_97_per_cent(name: str) -> None:
    assert 0.93 <= _coverage(*SCENARIOS[name]) <= 0.97


@pytest.mark.parametrize("name", BY_SLIDE)
def test_by_slide_it_covers_where_slides_fail_mildly(name: str) -> None:
    assert _coverage(*BY_SLIDE[name]) >= 0.93


@pytest.mark.parametrize("size", [(8, 80), (12, 50), (24, 30), (36, 30), (60, 20), (100, 20)])
def test_by_slide_it_covers_where_a_rare_slide_fails(size: tuple[int, int]) -> None:
    assert _coverage(*_rare(*size)) >= 0.92


def test_interval_errs_to_the_safe_side_where_three_flips_are_expected_in_all() -> None:
    assert 0.95 <= _coverage(_tiles([50] * 2, [0.02] * 2, [0.01] * 2), 0.01) <= 0.995


def test_no_flip_at_all_still_leaves_doubt() -> None:
    found = class_mean_interval(np.zeros(600), np.arange(600) % 5)
    assert found.estimate == 0.0
    assert 0.002 < found.high < 0.005  # about 2 / tiles


def test_no_flip_on_a_few_slides_leaves_more_doubt_than_on_as_many_tiles() -> None:
    classes, groups = np.arange(600) % 2, np.repeat(np.arange(3), 200)
    by_tile, by_slide = class_mean_interval(np.zeros(600), classes), class_mean_interval(np.zeros(600), classes, groups)
    assert by_tile.high < 0.005 and by_slide.high > 0.3
    # A tile a slide: both are the same.
    single = class_mean_interval(np.zeros(600), classes, np.arange(600))
    assert (single.high, single.unit) == (pytest.approx(by_tile.high), "group")


def test_few_slides_widen_the_interval_over_tiles() -> None:
    values, classes, groups = BY_SLIDE["8 slides of 80"][0](np.random.default_rng(3))
    assert groups is not None
    by_tile, by_slide = class_mean_interval(values, classes), class_mean_interval(values, classes, groups)
    assert (by_tile.unit, by_slide.unit, by_slide.units) == ("tile", "group", 8)
    assert by_slide.high - by_slide.low > by_tile.high - by_tile.low


def test_one_slide_knows_nothing_about_other_slides() -> None:
    found = class_mean_interval(np.array([1.0, 0.0, 0.0, 0.0]), np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert found.high == np.inf


@pytest.mark.parametrize("sides", [(3, 3), (6, 6), (1, 4), (5, 3)])
def test_students_of_several_seeds_are_part_of_a_recipe_s_doubt(sides: tuple[int, int]) -> None:
    # 300 tiles of their own difficulty in 3 classes; a seed moves a student's accuracy by 2.5 points, the recipe by 2.
    rng = np.random.default_rng(20261126)
    classes, truth = np.arange(300) % 3, 0.02
    given, over = 0, 0
    for _ in range(SIMULATIONS):
        difficulty = rng.beta(4, 2, size=300)
        right = []
        for number, shift in zip(sides, (truth, 0.0), strict=True):
            # A side of one is that very student, not a draw from a recipe.
            spread = 0.025 if number > 1 else 0.0
            chance = difficulty + shift + rng.normal(0, spread, (number, 1))
            right.append((rng.random((number, 300)) < chance).astype(np.float64))
        found = class_mean_interval(right[0].mean(0) - right[1].mean(0), classes, discrete=False, resamples=300)
        scores = [side.mean(1) for side in right]
        wider = over_replicates(found, *([scores[0] - scores[1]] if sides[0] == sides[1] else scores))
        assert wider.estimate == found.estimate and wider.low < found.low
        given += found.low <= truth <= found.high
        over += wider.low <= truth <= wider.high
    assert given / SIMULATIONS < 0.92
    assert 0.94 <= over / SIMULATIONS <= 0.995


def test_without_replicates_or_with_one_unit_an_interval_stays_as_it_is() -> None:
    values = np.array([1.0, -1.0, 0.0, 1.0])
    found = class_mean_interval(values, np.zeros(4, np.int64))
    alone = over_replicates(found, np.array([0.25]))
    assert (alone.low, alone.high) == (pytest.approx(found.low), pytest.approx(found.high))
    one = class_mean_interval(values, np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert over_replicates(one, np.array([0.0, 0.5])) == one


def test_share_stays_between_0_and_1() -> None:
    found = share_interval(np.zeros(20, np.bool_))
    assert found.low == 0.0 < found.high < 0.2


def test_geometric_mean_interval_covers_a_known_ratio() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(1000):
        found = geometric_mean_interval(2.0 * np.exp(rng.normal(0, 0.1, 10)))
        hits += found.low <= 2.0 <= found.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_geometric_mean_interval_by_hand() -> None:
    # Logarithms 0 and 2: mean 1, standard error 1, t(1) = 12.706.
    found = geometric_mean_interval(np.exp([0.0, 2.0]))
    ends = np.log([found.low, found.estimate, found.high])
    assert ends == pytest.approx([1 - 12.7062, 1.0, 1 + 12.7062], abs=1e-4)
    assert geometric_mean_interval(np.array([2.0])).high == np.inf


# Drawn after the interval was chosen, and from another family: sizes, class counts and rates at random, effects that
# differ between classes, slides of very unequal size with one or several classes.
def _fresh(number: int) -> tuple[Draw, float]:
    rng = np.random.default_rng([20261125, number])
    classes = int(rng.integers(2, 8))
    if number % 2 == 0:
        sizes = [int(size) for size in rng.integers(40, 260, classes)]
        lost = [float(rate) for rate in rng.uniform(0.02, 0.12, classes)]
        gained = [float(rate) for rate in rng.uniform(0.01, 0.08, classes)]
        return _tiles(sizes, lost, gained), float(np.mean(np.array(lost) - np.array(gained)))
    slides, tiles = int(rng.integers(14, 60)), int(rng.integers(15, 60))
    lost_rate, gained_rate = float(rng.uniform(0.03, 0.12)), float(rng.uniform(0.02, 0.08))
    draw = _slides(slides, tiles, classes=2, lost=lost_rate, gained=gained_rate, nested=number % 4 == 1)
    return draw, lost_rate - gained_rate


@pytest.mark.parametrize("number", range(8))
def test_interval_covers_in_scenarios_that_it_was_not_chosen_on(number: int) -> None:
    # Every other scenario is by slide.
    assert 0.93 <= _coverage(*_fresh(number)) <= (0.97 if number % 2 == 0 else 1.0)
