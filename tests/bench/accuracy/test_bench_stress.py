"""The stress test against encoders whose fragility is known."""

import numpy as np
import pytest

from atlas_edge.bench.accuracy.probe import fit_probe
from atlas_edge.bench.accuracy.stress import STRESSES, stress_result

N, D = 200, 16


def _moved(x: np.ndarray, size: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=x.shape) * size
    return (x + noise).astype(np.float32)


@pytest.fixture
def clean() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def test_an_encoder_that_moves_as_far_is_not_more_fragile(clean: np.ndarray) -> None:
    shifted = _moved(clean, 0.3, 1)
    found = stress_result("x", reference=(clean, shifted), candidate=(clean, _moved(clean, 0.3, 2)))
    assert not found.more_fragile
    assert found.extra_movement.low < 0 < found.extra_movement.high
    assert found.reference_cosine == pytest.approx(found.candidate_cosine, abs=0.01)
    assert found.drop_pp is None and found.tiles == N


def test_an_encoder_that_moves_further_is_more_fragile_and_how_far_is_known(clean: np.ndarray) -> None:
    # Rotating a vector by an angle in a plane with a random direction moves its cosine to exactly cos(angle).
    rng = np.random.default_rng(3)
    side = rng.normal(size=clean.shape)
    side -= clean * (np.einsum("nd,nd->n", side, clean) / np.einsum("nd,nd->n", clean, clean))[:, None]
    side *= (np.linalg.norm(clean, axis=1) / np.linalg.norm(side, axis=1))[:, None]
    turned = {angle: (np.cos(angle) * clean + np.sin(angle) * side).astype(np.float32) for angle in (0.2, 0.4)}
    found = stress_result("x", reference=(clean, turned[0.2]), candidate=(clean, turned[0.4]))
    assert found.reference_cosine == pytest.approx(np.cos(0.2), abs=1e-5)
    assert found.extra_movement.estimate == pytest.approx(np.cos(0.2) - np.cos(0.4), abs=1e-5)
    assert found.more_fragile
    assert not stress_result("x", reference=(clean, turned[0.4]), candidate=(clean, turned[0.2])).more_fragile
    # A tenth of the reference's own movement is let pass, however certain it is.
    slightly = (np.cos(0.2005) * clean + np.sin(0.2005) * side).astype(np.float32)
    barely = stress_result("x", reference=(clean, turned[0.2]), candidate=(clean, slightly))
    assert barely.extra_movement.low > 0 and not barely.more_fragile


def test_a_candidate_that_fails_on_shifted_tiles_only_drops_there() -> None:
    rng = np.random.default_rng(4)
    labels = np.array(["a", "b"])[np.arange(N) % 2]
    clean = rng.normal(size=(N, D)).astype(np.float32)
    clean[:, 0] = np.where(labels == "a", 4.0, -4.0)
    swapped = clean.copy()
    swapped[: N // 4, 0] *= -1  # a quarter of the shifted tiles looks like the other class to the candidate
    probe = fit_probe("linear", clean, labels)
    found = stress_result("x", reference=(clean, clean), candidate=(clean, swapped), probe=probe, labels=labels)
    assert found.drop_pp is not None
    assert found.drop_pp.estimate == pytest.approx(25.0)
    assert found.drop_pp.low > 15 and found.more_fragile


@pytest.mark.parametrize("name", STRESSES)
def test_every_shift_changes_a_tile_and_keeps_it_a_tile(name: str) -> None:
    tile = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = tile.copy()
    shifted = STRESSES[name](tile)
    assert shifted.shape == tile.shape and shifted.dtype == np.uint8
    assert np.abs(shifted.astype(int) - tile).mean() > 0.5
    assert np.array_equal(tile, before) and np.array_equal(shifted, STRESSES[name](tile))


def test_the_shifts_are_those_that_scanners_and_stainers_make() -> None:
    kinds = {"scanner": 0, "haematoxylin": 0, "eosin": 0, "JPEG": 0, "blur": 0}
    for name in STRESSES:
        kinds[name.split()[0]] += 1
    assert kinds == {"scanner": 4, "haematoxylin": 1, "eosin": 1, "JPEG": 1, "blur": 1}
