import numpy as np
import pytest

from atlas_edge.distill.targets.phis import FeatureStatistics, hadamard, phi_s


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 64, 192, 384, 768, 1024, 1152, 1280, 1536])
def test_hadamard_is_orthogonal_with_equal_entries(order: int) -> None:
    matrix = hadamard(order)
    assert np.allclose(matrix @ matrix.T, np.eye(order), atol=1e-9)
    assert np.allclose(np.abs(matrix), order**-0.5)


@pytest.mark.parametrize("order", [3, 7, 50, 94])
def test_other_orders_stay_orthogonal(order: int) -> None:
    matrix = hadamard(order)
    assert np.allclose(matrix @ matrix.T, np.eye(order), atol=1e-9)


def test_phi_s_gives_every_dimension_unit_variance_and_keeps_angles() -> None:
    generator = np.random.default_rng(0)
    features = (
        generator.normal(size=(4000, 12))
        * np.geomspace(0.01, 30, 12)
        @ np.linalg.qr(generator.normal(size=(12, 12)))[0]
        + 5.0
    )
    transform = phi_s(FeatureStatistics.of([features[:1000], features[1000:]]))
    targets = transform(features)
    assert np.allclose(targets.mean(0), 0, atol=1e-3)
    assert np.allclose(targets.var(0), 1, atol=1e-3)
    centred = features - features.mean(0)
    ratio = np.linalg.norm(targets, axis=1) / np.linalg.norm(centred, axis=1)
    assert np.allclose(ratio, ratio[0], rtol=1e-3)


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no features"):
        FeatureStatistics.of([])
