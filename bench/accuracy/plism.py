"""plismbench: does an encoder see the same tissue as the same on another scanner or with another stain?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import unit_rows

TOP_K = (1, 3, 5, 10)
KINDS = ("across scanners", "across stains", "across both")


class Scan(NamedTuple):
    """Which scan a tile is from.

    Attributes:
        name: Scanner and stain, or the slide.
        scanner: Where known.
        stain: Where known.
    """

    name: str
    scanner: str | None = None
    stain: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlismBench:
    """plismbench's figures over all pairs of scans that share positions.

    Attributes:
        cosine: Mean over the pairs of the mean cosine of registered tiles, -1 to 1.
        top_k: k -> share of tiles whose registered twin is among the k nearest, 0-1, mean over the pairs.
        pairs: Pairs of scans.
        positions: Positions seen on at least two scans.
        cosine_median: Median over the pairs of the mean cosine.
        top_10_medians: Median top-10 share of pairs `across scanners` (of one stain), `across stains` (of one scanner)
            and `across both`; without those kinds that there are no pairs of.
        leaderboard: Mean of these four medians, by which plismbench ranks encoders; None without all three kinds.
    """

    cosine: float
    top_k: dict[int, float]
    pairs: int
    positions: int
    cosine_median: float | None = None
    top_10_medians: dict[str, float] = field(default_factory=dict)
    leaderboard: float | None = None


def plism_bench(embeddings: NDArray[np.float32], positions: Sequence[str], scans: Sequence[Scan]) -> PlismBench | None:
    """Compare every pair of scans of the same tissue (Filiot et al., plismbench; data CC BY 4.0).

    Args:
        embeddings: `(N, D)`.
        positions: `(N,)` the physical place of each tile; equal places on two scans are registered twins.
        scans: `(N,)` scan of each tile; none has two tiles at one place (`TileSet.positions`).

    Returns:
        The figures, or None where no two scans share two positions.
    """
    unit = unit_rows(embeddings)
    rows_of: dict[Scan, dict[str, int]] = {}
    for row, (position, scan) in enumerate(zip(positions, scans, strict=True)):
        rows_of.setdefault(scan, {})[position] = row
    cosines, shares, kinds = [], [], []
    shared: set[str] = set()
    for one, two in combinations(sorted(rows_of, key=lambda scan: scan.name), 2):
        common = sorted(rows_of[one].keys() & rows_of[two].keys())
        if len(common) < 2:
            continue
        shared.update(common)
        a = unit[[rows_of[one][position] for position in common]]
        b = unit[[rows_of[two][position] for position in common]]
        cosines.append(float(np.einsum("nd,nd->n", a, b).mean()))
        shares.append(twin_top_k(a, b))
        kinds.append(_kind(one, two))
    if not cosines:
        return None
    top_10 = np.array([share[10] for share in shares])
    medians = {kind: float(np.median(top_10[np.array(kinds) == kind])) for kind in KINDS if kind in kinds}
    whole = float(np.median(cosines))
    return PlismBench(
        cosine=float(np.mean(cosines)),
        top_k={k: float(np.mean([share[k] for share in shares])) for k in TOP_K},
        pairs=len(cosines),
        positions=len(shared),
        cosine_median=whole,
        top_10_medians=medians,
        leaderboard=float(np.mean([whole, *medians.values()])) if len(medians) == len(KINDS) else None,
    )


def _kind(one: Scan, two: Scan) -> str:
    """One of `KINDS`; empty where scanner or stain are not known, or both are the same."""
    if None in (one.scanner, one.stain, two.scanner, two.stain):
        return ""
    differ = (one.scanner != two.scanner, one.stain != two.stain)
    return {(True, False): KINDS[0], (False, True): KINDS[1], (True, True): KINDS[2]}.get(differ, "")


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
