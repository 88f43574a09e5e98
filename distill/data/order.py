"""The order of an epoch's views, place by place: no list of all views is ever made.

A permutation of 0 to n - 1 as a block cipher on so small a domain: an alternating Feistel network on the bits that n
takes, keyed by seed and epoch, walked on until it lands below n (Luby & Rackoff, SIAM J. Comput. 17(2), 1988; Black &
Rogaway, CT-RSA 2002, section 4: cycle walking). Any place costs the same, whatever the number of views.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class EvenOrder:
    """An order in which every view comes once an epoch.

    Attributes:
        views: How many there are.
        seed: Of the run.
    """

    views: int
    seed: int

    def at(self, places: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Views at some places of an epoch, `(N,)`."""
        return shuffled(places, views=self.views, seed=self.seed, epoch=epoch)


class BalancedOrder:
    """An order in which every slide comes equally often, whatever its size: rounds with one view of each slide.

    Rounds go on through the epochs. Each has the slides in another order; a slide shows each of its views once before
    any again, and then in another order.

    Args:
        slides: `(tiles,)` number of each tile's slide, 0 to S - 1.
        seeds: Views of a tile; view v is the one of seed number v // tiles of tile v % tiles.
        seed: Of the run.
    """

    def __init__(self, slides: NDArray[np.int32], *, seeds: int, seed: int) -> None:
        self._tiles = np.argsort(slides, kind="stable").astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(slides))])
        self._seeds, self._seed = seeds, seed
        self.views = len(slides) * seeds

    def at(self, places: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Views at some places of an epoch, `(N,)`."""
        slides = len(self._starts) - 1
        rounds, turns = np.divmod(epoch * self.views + places, slides)
        found = np.empty(len(places), dtype=np.int64)
        for number in np.unique(rounds).tolist():
            here = np.flatnonzero(rounds == number)
            chosen = shuffled(turns[here], views=slides, seed=self._seed, epoch=number)
            found[here] = [self._view(slide, number) for slide in chosen.tolist()]
        return found

    def _view(self, slide: int, visit: int) -> int:
        first, tiles = int(self._starts[slide]), int(self._starts[slide + 1] - self._starts[slide])
        cycle, place = divmod(visit, tiles * self._seeds)
        place_of = shuffled(np.array([place]), views=tiles * self._seeds, seed=self._seed, epoch=cycle, of=slide + 1)
        seed, tile = divmod(int(place_of[0]), tiles)
        return seed * len(self._tiles) + int(self._tiles[first + tile])


def shuffled(places: NDArray[np.int64], *, views: int, seed: int, epoch: int, of: int = 0) -> NDArray[np.int64]:
    """Views at some places of an epoch's order, `(N,)` int64.

    Args:
        places: `(N,)`, each below `views`; all places together give every view once.
        views: How many there are.
        seed: Of the run.
        epoch: Each has an order of its own.
        of: Each number has orders of its own, too.
    """
    bits = max((views - 1).bit_length(), 2)
    key = [seed, epoch, of] if of else [seed, epoch]
    keys = np.random.default_rng(key).integers(0, 2**63, _ROUNDS, dtype=np.uint64)
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        found[outside] = _cipher(found[outside], bits, keys)
        outside = found >= views
    return found.astype(np.int64)


def _cipher(values: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of the numbers of so many bits."""
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    for key in keys:
        left, right = values >> low, values & _ones(low)
        # The halves change places, and with them their sizes.
        values = right << high | (left ^ _mixed(right ^ key) & _ones(high))
        low, high = high, low
    return values


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): each bit in changes each bit out with probability 1/2."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _ones(bits: np.uint64) -> np.uint64:
    return (np.uint64(1) << bits) - np.uint64(1)
