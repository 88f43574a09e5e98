import time

import numpy as np
import pytest

from atlas_edge.bench.accuracy.drop import accuracy_drop, balanced_accuracy, calibration_error
from atlas_edge.errors import InputError


def _world(n: int, *, noise: float = 1.0, seed: int = 0, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(size=(n, d)) * noise
    features[np.arange(n), labels] += 2.0
    return features.astype(np.float32), np.array(["a", "b", "c"])[labels]


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_the_reference_against_itself_drops_exactly_nothing(method: str) -> None:
    fit, fit_labels = _world(300, seed=1)
    x, labels = _world(300, seed=2)
    found = accuracy_drop(
        fit_features=fit, fit_labels=fit_labels, reference=x, candidate=x.copy(), labels=labels, method=method
    )
    assert (found.drop_pp, found.low_pp, found.high_pp, found.flips) == (0.0, 0.0, 0.0, 0.0)
    assert found.reference_score > 0.8


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_a_damaged_candidate_drops(method: str) -> None:
    fit, fit_labels = _world(300, seed=1)
    x, labels = _world(600, seed=2)
    damaged = x + np.random.default_rng(3).normal(size=x.shape).astype(np.float32) * 2
    found = accuracy_drop(
        fit_features=fit, fit_labels=fit_labels, reference=x, candidate=damaged, labels=labels, method=method
    )
    assert found.low_pp > 5
    assert found.low_pp < found.drop_pp < found.high_pp
    assert found.drop_pp == pytest.approx(100 * (found.reference_score - found.candidate_score))
    assert found.flips_low < found.flips < found.flips_high


def test_refitting_forgives_a_rotation_that_a_deployed_probe_does_not() -> None:
    fit, fit_labels = _world(300, seed=1)
    x, labels = _world(300, seed=2)
    swap = np.roll(np.arange(16), 1)
    shared = {"fit_features": fit, "fit_labels": fit_labels, "reference": x, "candidate": x[:, swap], "labels": labels}
    deployed = accuracy_drop(**shared)
    refitted = accuracy_drop(**shared, candidate_fit_features=fit[:, swap])
    assert deployed.drop_pp > 30
    assert abs(refitted.drop_pp) < 1e-9 and refitted.refitted


def test_groups_are_the_units() -> None:
    fit, fit_labels = _world(300, seed=1)
    x, labels = _world(300, seed=2)
    groups = [f"slide{i // 30}" for i in range(300)]
    found = accuracy_drop(
        fit_features=fit, fit_labels=fit_labels, reference=x, candidate=x + 0.1, labels=labels, groups=groups
    )
    assert (found.units, found.unit) == (10, "group")


def test_two_runs_are_equal() -> None:
    fit, fit_labels = _world(300, seed=1)
    x, labels = _world(300, seed=2)
    runs = [
        accuracy_drop(fit_features=fit, fit_labels=fit_labels, reference=x, candidate=x * 1.3 + 0.2, labels=labels)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_it_is_fast_at_the_real_size() -> None:
    rng = np.random.default_rng(0)
    fit, fit_labels = _world(1500, seed=1, d=384)
    x, labels = _world(600, seed=2, d=384)
    candidate = (x + rng.normal(size=x.shape) * 0.05).astype(np.float32)
    started = time.process_time()
    accuracy_drop(fit_features=fit, fit_labels=fit_labels, reference=x, candidate=candidate, labels=labels)
    assert time.process_time() - started < 10


def test_balanced_accuracy_and_calibration_error_by_hand() -> None:
    predicted, truth = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert balanced_accuracy(predicted == truth, truth) == 0.75
    odds = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    # Bin of 0.9: one of two right, gap 0.4 x 2; bin of 0.6: both right, gap 0.4 x 2; over 4 tiles.
    assert calibration_error(odds, np.array([0, 1, 0, 1])) == pytest.approx(0.4)


def test_unknown_class_and_lengths_are_refused() -> None:
    fit, fit_labels = _world(30)
    with pytest.raises(InputError, match="'d' does not occur"):
        accuracy_drop(fit_features=fit, fit_labels=fit_labels, reference=fit, candidate=fit, labels=["d"] * 30)
    with pytest.raises(InputError, match="29 labels"):
        accuracy_drop(fit_features=fit, fit_labels=fit_labels, reference=fit, candidate=fit, labels=fit_labels[:29])
    with pytest.raises(InputError, match="at least two"):
        accuracy_drop(fit_features=fit, fit_labels=["a"] * 30, reference=fit, candidate=fit, labels=["a"] * 30)
