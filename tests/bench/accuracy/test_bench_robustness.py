"""The robustness index against golden cases derived by hand, and against the definition in plain loops."""

from typing import Any

import numpy as np
import pytest

from atlas_edge.bench.accuracy.robustness import RobustnessIndex, robustness_counts
from atlas_edge.errors import InputError


def robustness_index(*tiles: Any, **options: Any) -> RobustnessIndex:
    return robustness_counts(*tiles, **options).index


def _directions(degrees: list[float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_biology_only_is_1() -> None:
    # Two tight clusters, one a class, each holding both centres: every nearest neighbour is SO.
    found = robustness_index(_directions([0, 1, 90, 91]), list("aabb"), list("xyxy"), list("1234"), k=1)
    assert (found.index, found.tiles, found.centers, found.subsets) == (1.0, 4, 2, 0)


def test_centre_only_is_0() -> None:
    found = robustness_index(_directions([0, 1, 90, 91]), list("abab"), list("xxyy"), list("1234"), k=1)
    assert found.index == 0.0


def test_mixed_by_hand() -> None:
    # Angles 0 (a,x) 10 (a,y) 25 (b,y) 60 (b,x), k = 2:
    #   0: 10 SO, 25 neither            -> SO 1, OS 0
    #  10: 0 SO, 25 OS                  -> SO 1, OS 1
    #  25: 10 OS, 0 neither             -> SO 0, OS 1   (60 is 35 away, 0 is 25 away)
    #  60: 25 SO, 10 neither            -> SO 1, OS 0
    found = robustness_index(_directions([0, 10, 25, 60]), list("aabb"), list("xyyx"), list("1234"), k=2)
    assert found.index == pytest.approx(3 / 5)


def test_tiles_of_the_same_slide_are_no_neighbours() -> None:
    # The nearest of each is on its own slide; without those, as in the mixed case at k = 1:
    # 0 -> 10 SO, 1 -> 10 SO, 10 -> 1 SO, 25 -> 10 OS.
    found = robustness_index(_directions([0, 1, 10, 25]), list("aaab"), list("xxyy"), list("1123"), k=1)
    assert found.index == pytest.approx(3 / 4)


def test_neighbours_that_are_neither_count_for_nothing() -> None:
    # Same class and same centre, or neither: not in the ratio.
    found = robustness_index(_directions([0, 1, 2, 90]), list("aaab"), list("xxyx"), list("1234"), k=3)
    # 0: 1 -, 2 SO, 90 OS; 1: 0 -, 2 SO, 90 OS; 2: 0 SO, 1 SO, 90 -; 90: 0 OS, 1 OS, 2 -.
    assert found.index == pytest.approx(4 / 8)


def test_paired_subsets_by_hand() -> None:
    # Classes a, b at centres x, y (all cells filled) and class c at x only: one 2 x 2 subset, c left out.
    found = robustness_index(
        _directions([0, 1, 90, 91, 45]), list("aabbc"), list("xyxyx"), list("12345"), k=1, paired=True
    )
    assert (found.index, found.subsets, found.tiles) == (1.0, 1, 4)


def _brute_force(x: np.ndarray, labels: list[str], centers: list[str], slides: list[str], k: int) -> float:
    same_other, other_same = _counts(x, labels, centers, slides, k)
    return same_other / (same_other + other_same)


def _counts(x: np.ndarray, labels: list[str], centers: list[str], slides: list[str], k: int) -> tuple[int, int]:
    same_other = other_same = 0
    for i in range(len(x)):
        near = []
        for j in range(len(x)):
            if slides[i] != slides[j]:
                near.append((float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])), j))
        for _, j in sorted(near, reverse=True)[:k]:
            same_other += labels[i] == labels[j] and centers[i] != centers[j]
            other_same += labels[i] != labels[j] and centers[i] == centers[j]
    return same_other, other_same


@pytest.mark.parametrize("k", [1, 5, 11])
def test_equals_the_definition_on_random_embeddings_with_made_up_centres(k: int) -> None:
    rng = np.random.default_rng(k)
    n = 120
    labels = [str(v) for v in rng.integers(0, 3, n)]
    slides = [f"s{v}" for v in rng.integers(0, 12, n)]
    centers = [f"c{int(s[1:]) % 3}" for s in slides]
    x = rng.normal(size=(n, 12)).astype(np.float32)
    x[:, 0] += np.array([float(v) for v in labels]) * 2
    found = robustness_index(x, labels, centers, slides, k=k)
    assert found.index == pytest.approx(_brute_force(x.astype(np.float64), labels, centers, slides, k), abs=1e-12)


def test_paired_equals_the_definition_pooled_over_subsets() -> None:
    rng = np.random.default_rng(9)
    n = 160
    labels, centers = rng.choice(list("abc"), n), rng.choice(list("xyz"), n)
    slides = np.array([f"{c}{v}" for c, v in zip(centers, rng.integers(0, 4, n), strict=True)])
    x = rng.normal(size=(n, 6)).astype(np.float32)
    total = np.zeros(2)
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        for places in (("x", "y"), ("x", "z"), ("y", "z")):
            m = np.isin(labels, pair) & np.isin(centers, places)
            total += _counts(x[m].astype(np.float64), list(labels[m]), list(centers[m]), list(slides[m]), 7)
    found = robustness_index(x, list(labels), list(centers), list(slides), k=7, paired=True)
    assert found.subsets == 9
    assert found.index == pytest.approx(total[0] / total.sum(), abs=1e-12)


def test_subsets_are_pooled_not_averaged_by_hand() -> None:
    # Subset s as in "mixed by hand" (SO 3, OS 2); t holds two clusters a degree apart, one a class, each of both
    # centres, so all four nearest are SO at k = 1 and, at k = 2, the other class is neither or OS:
    #   0: 1 SO, 90 OS     1: 0 SO, 91 OS     90: 91 SO, 1 neither    91: 90 SO, 1 OS
    # 0 -> 1 (a,y) SO, then 90 (b,x) OS; 1 -> 0 (a,x) SO, then 90 (b,x) neither; 90 -> 91 (b,y) SO, then 1 (a,y)
    # neither; 91 -> 90 (b,x) SO, then 1 (a,y) OS. SO 4, OS 2. Together 7 / 11, and not (3/5 + 4/6) / 2.
    x = _directions([0, 10, 25, 60, 0, 1, 90, 91])
    found = robustness_index(
        x, list("aabbaabb"), list("xyyxxyxy"), list("12345678"), k=2, paired=True, subsets=list("sssstttt")
    )
    assert (found.index, found.subsets, found.tiles) == (pytest.approx(7 / 11), 2, 8)


def test_tiles_of_the_subset_ood_are_left_out_unless_there_are_no_others() -> None:
    # The last two would be the nearest of all others.
    x, labels, centers = _directions([0, 10, 25, 60, 0.5, 25.5]), list("aabbba"), list("xyyxxy")
    subsets = ["ID"] * 4 + ["OOD"] * 2
    found = robustness_counts(x, labels, centers, list("123456"), k=2, subsets=subsets)
    assert (found.index.index, found.index.tiles, found.index.left_out) == (pytest.approx(3 / 5), 4, 2)
    assert found.so.tolist() == [1, 1, 0, 1, 0, 0] and found.os.tolist() == [0, 1, 1, 0, 0, 0]
    whole = robustness_index(x, labels, centers, list("123456"), k=2)
    alone = robustness_index(x, labels, centers, list("123456"), k=2, subsets=["OOD"] * 6)
    assert (alone.index, alone.tiles, alone.left_out) == (whole.index, 6, 0)


def test_every_tile_keeps_as_many_neighbours_as_the_one_that_has_fewest() -> None:
    # Slide 1 holds three of five tiles: those have two others left, and so all are cut to two, whatever k.
    #   0: 20 SO, 40 neither     1: the same     2: the same     20: 2 SO, 1 SO     40: 20 OS, 2 neither
    x, labels, centers = _directions([0, 1, 2, 20, 40]), list("aaaab"), list("xxxyy")
    found = robustness_index(x, labels, centers, list("11123"), k=4)
    assert (found.index, found.k) == (pytest.approx(5 / 6), 2)


def test_of_subsets_the_one_that_has_fewest_neighbours_counts_for_all() -> None:
    parts = (
        (_directions([0, 10, 25, 60]), list("aabb"), list("xyyx"), list("1234")),  # three outside each slide
        (_directions([0, 5, 9, 30, 50, 80]), list("aabbab"), list("xyyxxy"), list("567890")),  # five
    )
    x, labels, centers, slides = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    subsets = list("sssstttttt")
    found = robustness_counts(x, labels, centers, slides, k=4, paired=True, subsets=subsets)
    alone = [robustness_counts(*part, k=3) for part in parts]
    assert found.index.k == 3
    assert found.so.tolist() == [*alone[0].so, *alone[1].so] and found.os.tolist() == [*alone[0].os, *alone[1].os]


def test_one_centre_is_refused() -> None:
    with pytest.raises(InputError, match="needs two of each"):
        robustness_index(_directions([0, 1]), list("ab"), list("xx"), list("12"))
