"""plismbench against golden cases derived by hand, and against the definition in plain loops."""

import numpy as np
import pytest

from atlas_edge.bench.accuracy.plism import TOP_K, Scan, plism_bench, twin_top_k


def _directions(degrees: list[float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _scans(names: str) -> list[Scan]:
    return [Scan(name) for name in names]


def test_twins_that_coincide_score_1() -> None:
    found = plism_bench(_directions([0, 90, 0, 90]).astype(np.float32), list("pqpq"), _scans("AABB"))
    assert found is not None
    assert found.cosine == pytest.approx(1.0)
    assert (found.top_k[1], found.pairs, found.positions) == (1.0, 1, 2)


def test_top_k_by_hand() -> None:
    # Scan A at 0, 10, 20 and scan B at 4, 13, 40 degrees; twins (0, 4), (10, 13), (20, 40).
    #  0: 4 first -> rank 0             4: 0 (4) before 10 (6)                  -> rank 0
    # 10: 13 (3) first -> rank 0       13: 10 (3) first                         -> rank 0
    # 20: 13 (7), 10 (10), 4 (16), 40 and 0 (20, 20) -> rank 3 (cos 20 = cos 20: not strictly nearer)
    # 40: 20 first -> rank 0
    shares = twin_top_k(_directions([0, 10, 20]), _directions([4, 13, 40.0]))
    assert shares[1] == pytest.approx(5 / 6)
    assert shares[3] == pytest.approx(5 / 6)
    assert shares[5] == 1.0


def test_cosine_by_hand_and_mean_over_pairs_of_scans() -> None:
    # Positions p, q on scans A, B, C; B is A turned by 60 degrees, C is A: cosines 0.5, 1, 0.5.
    x = _directions([0, 45, 60, 105, 0, 45]).astype(np.float32)
    found = plism_bench(x, list("pqpqpq"), _scans("AABBCC"))
    assert found is not None
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
    shares = twin_top_k(a, b)
    assert 0.1 < shares[1] < 0.9
    for k in TOP_K:
        assert shares[k] == pytest.approx(_brute_force(a, b, k))


def test_no_shared_positions_gives_nothing() -> None:
    assert plism_bench(_directions([0, 1, 2, 3]).astype(np.float32), list("pqrs"), _scans("AABB")) is None


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
    found = plism_bench(x, [str(place) for place in range(12)] * 4, [scan for scan in scans for _ in range(12)])
    assert found is not None
    a, b, c, d = (x[12 * number : 12 * (number + 1)].astype(np.float64) for number in range(4))
    ten = {pair: twin_top_k(one, two)[10] for pair, one, two in (("bd", b, d), ("cd", c, d), ("ad", a, d))}
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
    found = plism_bench(_directions([0, 90, 0, 90]).astype(np.float32), list("pqpq"), [scans[n // 2] for n in range(4)])
    assert found is not None and found.leaderboard is None and list(found.top_10_medians) == ["across scanners"]
