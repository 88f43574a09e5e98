"""plismbench: does an encoder see the same tissue as the same on another scanner or with another stain?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.agreement import unit_rows

TOP_K = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlismBench:
    """plismbench's two figures, each the mean over all pairs of scans that share positions.

    Attributes:
        cosine: Mean cosine of registered tiles, -1 to 1.
        top_k: k -> share of tiles whose registered twin is among the k nearest, 0-1.
        pairs: Pairs of scans.
        positions: Positions seen on at least two scans.
    """

    cosine: float
    top_k: dict[int, float]
    pairs: int
    positions: int


def plism_bench(embeddings: NDArray[np.float32], positions: Sequence[str], scans: Sequence[str]) -> PlismBench | None:
    """Compare every pair of scans of the same tissue (Filiot et al., plismbench; data CC BY 4.0).

    Args:
        embeddings: `(N, D)`.
        positions: `(N,)` the physical place of each tile; equal places on two scans are registered twins.
        scans: `(N,)` scan of each tile: scanner and stain, or slide.

    Returns:
        The figures, or None where no two scans share two positions.
    """
    unit = unit_rows(embeddings)
    rows_of: dict[str, dict[str, int]] = {}
    for row, (position, scan) in enumerate(zip(positions, scans, strict=True)):
        rows_of.setdefault(scan, {}).setdefault(position, row)
    cosines, shares = [], []
    shared: set[str] = set()
    for one, two in combinations(sorted(rows_of), 2):
        common = sorted(rows_of[one].keys() & rows_of[two].keys())
        if len(common) < 2:
            continue
        shared.update(common)
        a = unit[[rows_of[one][position] for position in common]]
        b = unit[[rows_of[two][position] for position in common]]
        cosines.append(float(np.einsum("nd,nd->n", a, b).mean()))
        shares.append(twin_top_k(a, b))
    if not cosines:
        return None
    return PlismBench(
        cosine=float(np.mean(cosines)),
        top_k={k: float(np.mean([share[k] for share in shares])) for k in TOP_K},
        pairs=len(cosines),
        positions=len(shared),
    )


def twin_top_k(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[int, float]:
    """K -> share of the 2n tiles whose twin is among the k nearest by cosine in the pooled set, self excluded.

    Averaging over all 2n tiles is the average of both directions.

    Args:
        a: `(n, D)` L2-normalised embeddings of one scan.
        b: `(n, D)` those of the other, in the same order of positions.
    """
    pooled = np.concatenate([a, b])
    n = len(a)
    twin = np.concatenate([np.arange(n, 2 * n), np.arange(n)])
    ranks = np.empty(2 * n, np.int64)
    for start in range(0, 2 * n, 1024):  # bounds memory at 1024 x 2n similarities
        rows = np.arange(start, min(start + 1024, 2 * n))
        similarity = pooled[rows] @ pooled.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        own = similarity[np.arange(len(rows)), twin[rows]]
        ranks[rows] = (similarity > own[:, None]).sum(axis=1)
    return {k: float((ranks < k).mean()) for k in TOP_K}
