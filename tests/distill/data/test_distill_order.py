"""The order of an epoch: every view once, another order each time, any place at the same price."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from atlas_edge.distill.data.order import BalancedOrder, shuffled


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


def test_every_slide_comes_equally_often_and_shows_all_before_any_again() -> None:
    slides = np.array([2, 0, 1, 0, 0, 0, 2], dtype=np.int32)
    order = BalancedOrder(slides, seeds=2, seed=3)
    assert order.views == 14
    # Six epochs as they are trained, in batches; any place alone gives the same.
    places = [(np.arange(start, min(start + 4, 14)), epoch) for epoch in range(6) for start in range(0, 14, 4)]
    views = np.concatenate([order.at(*place) for place in places])
    assert [int(order.at(np.array([place]), 2)[0]) for place in range(14)] == views[28:42].tolist()
    seen = slides[views % 7]
    rounds = seen.reshape(-1, 3)
    assert (np.sort(rounds, axis=1) == [0, 1, 2]).all() and len({tuple(one) for one in rounds.tolist()}) > 3
    for slide, count in enumerate([8, 2, 4]):
        own = views[seen == slide].tolist()
        cycles = [tuple(own[start : start + count]) for start in range(0, len(own) - count + 1, count)]
        assert all(len(set(cycle)) == count for cycle in cycles) and len(set(cycles)) > 1
    other = BalancedOrder(slides, seeds=2, seed=4)
    assert not np.array_equal(other.at(np.arange(14), 0), order.at(np.arange(14), 0))


def test_a_batch_of_a_hundred_million_views_needs_no_list_of_them() -> None:
    tracemalloc.start()
    found = shuffled(np.arange(10**8 - 256, 10**8), views=10**8, seed=0, epoch=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found.tolist())) == 256 and found.min() >= 0 and found.max() < 10**8
    assert peak < 1e6
