import numpy as np
import pytest

from atlas_edge.bench.accuracy.agreement import embedding_agreement, linear_cka, same_tile_retrieval, tile_cosines
from atlas_edge.errors import InputError


def _random(n: int = 50, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_equal_embeddings_agree_completely() -> None:
    x = _random()
    found = embedding_agreement(x, x)
    assert (found.identical, found.retrieval_top1) == (True, 1.0)
    assert found.cosine_worst == pytest.approx(1.0)
    assert found.cka == pytest.approx(1.0)


def test_worst_tiles_are_named_worst_first() -> None:
    x = _random()
    y = x.copy()
    y[7], y[3] = -x[7], np.roll(x[3], 1)
    found = embedding_agreement(x, y)
    assert found.worst[:2] == (7, 3)
    assert found.worst_cosines[0] == found.cosine_worst == pytest.approx(-1.0)
    assert not found.identical


def test_cosine_by_hand() -> None:
    a = np.array([[1, 0], [3, 4]], np.float32)
    b = np.array([[1, 1], [4, 3]], np.float32)
    assert tile_cosines(a, b) == pytest.approx([2**-0.5, 24 / 25])


def test_cka_ignores_rotation_and_scale_but_not_noise() -> None:
    x = _random(200, 6)
    rotation = np.linalg.qr(_random(6, 6, seed=1))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-6)
    assert linear_cka(x, _random(200, 6, seed=2)) < 0.3


def test_retrieval_counts_tiles_that_find_themselves() -> None:
    x = np.eye(4, dtype=np.float32)
    y = x[[1, 0, 2, 3]] + 0.01
    assert same_tile_retrieval(x, y) == 0.5


def test_broken_embeddings_are_refused_with_the_tile() -> None:
    x = _random()
    y = x.copy()
    y[4, 2] = np.nan
    with pytest.raises(InputError, match=r"1 of 50 embeddings of the candidate .* tile 4"):
        embedding_agreement(x, y)
    with pytest.raises(InputError, match="shapes"):
        embedding_agreement(x, x[:, :4])
