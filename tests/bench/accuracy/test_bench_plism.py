"""plismbench against golden cases derived by hand, and against the definition in plain loops."""

import numpy as np
import pytest

from atlas_edge.bench.accuracy.plism import (
    COSINE,
    KINDS,
    LEADERBOARD,
    TOP_K,
    PlismBench,
    Scan,
    ScanPairs,
    plism_bench,
    plism_drops,
    scan_pairs,
    twin_ranks,
)


def _directions(degrees: list[float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _scans(names: str) -> list[Scan]:
    return [Scan(name) for name in names]


def _pairs(x: np.ndarray, positions: list[str], scans: list[Scan]) -> ScanPairs:
    found = scan_pairs(x, positions, scans)
    assert found is not None
    return found


def _bench(x: np.ndarray, positions: list[str], scans: list[Scan]) -> PlismBench:
    return plism_bench(_pairs(x, positions, scans))


def _top_k(a: np.ndarray, b: np.ndarray) -> dict[int, float]:
    ranks = twin_ranks(a, b)
    return {k: float((ranks < k).mean()) for k in TOP_K}


def test_twins_that_coincide_score_1() -> None:
    found = _bench(_directions([0, 90, 0, 90]).astype(np.float32), list("pqpq"), _scans("AABB"))
    assert found.cosine == pytest.approx(1.0)
    assert (found.top_k[1], found.pairs, found.positions) == (1.0, 1, 2)


def test_top_k_by_hand() -> None:
    # Scan A at 0, 10, 20 and scan B at 4, 13, 40 degrees; twins (0, 4), (10, 13), (20, 40).
    #  0: 4 first -> rank 0             4: 0 (4) before 10 (6)                  -> rank 0
    # 10: 13 (3) first -> rank 0       13: 10 (3) first                         -> rank 0
    # 20: 13 (7), 10 (10), 4 (16), 40 and 0 (20, 20) -> rank 3 (cos 20 = cos 20: not strictly nearer)
    # 40: 20 first -> rank 0
    shares = _top_k(_directions([0, 10, 20]), _directions([4, 13, 40.0]))
    assert shares[1] == pytest.approx(5 / 6)
    assert shares[3] == pytest.approx(5 / 6)
    assert shares[5] == 1.0


def test_cosine_by_hand_and_mean_over_pairs_of_scans() -> None:
    # Positions p, q on scans A, B, C; B is A turned by 60 degrees, C is A: cosines 0.5, 1, 0.5.
    x = _directions([0, 45, 60, 105, 0, 45]).astype(np.float32)
    found = _bench(x, list("pqpqpq"), _scans("AABBCC"))
    assert found.pairs == 3
    assert found.cosine == pytest.approx(2 / 3, abs=1e-6)


def _brute_force(a: np.ndarray, b: np.ndarray, k: int) -> float:
    pooled = [*a, *b]
    n, hits = len(a), 0
    for i in range(2 * n):
        order = sorted((j for j in range(2 * n) if j != i), key=lambda j: -float(pooled[i] @ pooled[j]))
        hits += (i + n) % (2 * n) in order[:k]
    return hits / (2 * n)


def test_equals_the_definition_on_random_embeddings() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 8))
    b = a + rng.normal(size=a.shape)
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    shares = _top_k(a, b)
    assert 0.1 < shares[1] < 0.9
    for k in TOP_K:
        assert shares[k] == pytest.approx(_brute_force(a, b, k))


def test_no_shared_positions_gives_nothing() -> None:
    assert scan_pairs(_directions([0, 1, 2, 3]).astype(np.float32), list("pqrs"), _scans("AABB")) is None


def test_the_leaderboard_is_the_mean_of_four_medians_by_hand() -> None:
    # Stain and scanner of five scans; 12 positions, twins first or, on scan C, never among ten: C's places lie in the
    # opposite order, a right angle or more from their twins.
    scans = [Scan("GIV/S60", "S60", "GIV"), Scan("GIV/AT2", "AT2", "GIV"), Scan("GMH/S60", "S60", "GMH")]
    scans += [Scan("GMH/AT2", "AT2", "GMH")]
    places = np.linspace(0, 3.3, 12)
    turned = {scan.name: places + number / 1e3 for number, scan in enumerate(scans)}
    turned["GMH/AT2"] = places[::-1].copy()
    angles = np.concatenate([turned[scan.name] for scan in scans])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = _bench(x, [str(place) for place in range(12)] * 4, [scan for scan in scans for _ in range(12)])
    a, b, c, d = (x[12 * number : 12 * (number + 1)].astype(np.float64) for number in range(4))
    ten = {pair: _top_k(one, two)[10] for pair, one, two in (("bd", b, d), ("cd", c, d), ("ad", a, d))}
    assert max(ten.values()) < 1  # the pairs with the turned scan; all others find their twins
    assert found.top_10_medians == {
        "across scanners": pytest.approx(np.median([1.0, ten["cd"]])),  # GIV: S60, AT2; GMH: S60, AT2
        "across stains": pytest.approx(np.median([1.0, ten["bd"]])),  # S60: GIV, GMH; AT2: GIV, GMH
        "across both": pytest.approx(np.median([1.0, ten["ad"]])),
    }
    cosines = [np.einsum("nd,nd->n", one, two).mean() for one, two in ((a, b), (a, c), (a, d), (b, c), (b, d), (c, d))]
    assert found.cosine_median == pytest.approx(np.median(cosines), abs=1e-6)
    assert found.leaderboard == pytest.approx((found.cosine_median + sum(found.top_10_medians.values())) / 4, abs=1e-12)


def test_without_all_three_kinds_of_pairs_there_is_no_leaderboard() -> None:
    scans = [Scan("A", "A", "HE"), Scan("B", "B", "HE")]
    found = _bench(_directions([0, 90, 0, 90]).astype(np.float32), list("pqpq"), [scans[n // 2] for n in range(4)])
    assert found.leaderboard is None and list(found.top_10_medians) == ["across scanners"]


def _registered(noise: float, *, positions: int = 40, seed: int = 0) -> tuple[np.ndarray, list[str], list[Scan]]:
    """Two scanners by two stains of places that lie near one another, each scan with noise of its own."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(positions, 6))
    scans = [Scan(f"{stain}/{scanner}", scanner, stain) for stain in "HG" for scanner in "AB"]
    x = np.concatenate([places + noise * rng.normal(size=places.shape) for _ in scans]).astype(np.float32)
    return x, [str(n) for n in range(positions)] * 4, [scan for scan in scans for _ in range(positions)]


def test_what_is_lost_is_the_difference_of_the_medians_and_paired() -> None:
    x, *columns = _registered(0.5)
    reference, worse = _pairs(x, *columns), _pairs(_registered(0.9)[0], *columns)
    lost, (one, two) = plism_drops(reference, worse), (plism_bench(reference), plism_bench(worse))
    assert list(lost) == [COSINE, *KINDS, LEADERBOARD]
    assert lost[COSINE].estimate == pytest.approx(one.cosine_median - two.cosine_median)
    assert lost[LEADERBOARD].estimate == pytest.approx(one.leaderboard - two.leaderboard)
    for kind in KINDS:
        assert lost[kind].estimate == pytest.approx(one.top_10_medians[kind] - two.top_10_medians[kind])
    assert all(0 < found.low < found.high and (found.units, found.unit) == (40, "position") for found in lost.values())
    # A change that is the same everywhere is told from none, and none is none without doubt.
    unchanged = plism_drops(reference, _pairs(3 * x, *columns))
    assert all(found.low == pytest.approx(0, abs=1e-6) == found.high for found in unchanged.values())


def test_its_interval_holds_the_truth() -> None:
    # The truth is the mean over many draws of places; of 100 intervals 95 hold it, and of few positions more.
    drops = []
    for seed in range(100):
        x, *columns = _registered(0.5, positions=30, seed=seed)
        worse = x + 0.3 * np.random.default_rng(1000 + seed).normal(size=x.shape).astype(np.float32)
        drops.append(plism_drops(_pairs(x, *columns), _pairs(worse, *columns), seed=seed)[COSINE])
    truth = np.mean([found.estimate for found in drops])
    assert 90 <= sum(found.low <= truth <= found.high for found in drops) <= 100
