"""The order of an epoch: every view once, another order each time, any place at the same price."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from atlas_edge.distill.data.order import shuffled


@pytest.mark.parametrize("views", [1, 2, 3, 4, 5, 31, 32, 33, 1000, 4097, 65_536])
def test_every_view_comes_once(views: int) -> None:
    order = shuffled(np.arange(views), views=views, seed=3, epoch=1)
    assert np.array_equal(np.sort(order), np.arange(views))
    places = np.random.default_rng(0).permutation(views)
    assert np.array_equal(shuffled(places, views=views, seed=3, epoch=1), order[places])


def test_seed_and_epoch_give_other_orders() -> None:
    orders = [
        shuffled(np.arange(1000), views=1000, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4
    assert max(np.mean(np.equal(orders[0], other)) for other in orders[1:]) < 0.02


def test_it_is_as_random_as_a_drawn_permutation() -> None:
    views, batch = 4096, 32
    # Over many epochs: where a view comes, how many of a batch are of one half, and neighbours' distance.
    orders = np.stack([shuffled(np.arange(views), views=views, seed=5, epoch=epoch) for epoch in range(100)])
    first = np.bincount(orders[:, :batch].ravel() // 256, minlength=16)
    assert stats.chisquare(first).pvalue > 1e-3
    halves = (orders.reshape(-1, batch) < views // 2).sum(1)
    drawn = stats.hypergeom(views, views // 2, batch)
    counts, expected = np.bincount(halves, minlength=batch + 1)[8:25], drawn.pmf(np.arange(8, 25))
    assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3
    correlation = np.mean([np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders])
    assert abs(correlation) < 4 / np.sqrt(orders.size)


def test_a_batch_of_a_hundred_million_views_needs_no_list_of_them() -> None:
    tracemalloc.start()
    found = shuffled(np.arange(10**8 - 256, 10**8), views=10**8, seed=0, epoch=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found.tolist())) == 256 and found.min() >= 0 and found.max() < 10**8
    assert peak < 1e6
