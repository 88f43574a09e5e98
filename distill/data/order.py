"""The order of an epoch's views, place by place: no list of all views is ever made.

A permutation of 0 to n - 1 as a block cipher on so small a domain: an alternating Feistel network on the bits that n
takes, keyed by seed and epoch, walked on until it lands below n (Luby & Rackoff, SIAM J. Comput. 17(2), 1988; Black &
Rogaway, CT-RSA 2002, section 4: cycle walking). Any place costs the same, whatever the number of views.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def shuffled(places: NDArray[np.int64], *, views: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Views at some places of an epoch's order, `(N,)` int64.

    Args:
        places: `(N,)`, each below `views`; all places together give every view once.
        views: How many there are.
        seed: Of the run.
        epoch: Each has an order of its own.
    """
    bits = max((views - 1).bit_length(), 2)
    keys = np.random.default_rng([seed, epoch]).integers(0, 2**63, _ROUNDS, dtype=np.uint64)
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
