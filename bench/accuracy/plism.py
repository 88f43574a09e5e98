"""plismbench: does an encoder see the same tissue as the same on another scanner or with another stain?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import unit_rows
from atlas_edge.bench.interval import RESAMPLES, Interval, drawn_interval

TOP_K = (1, 3, 5, 10)
KINDS = ("across scanners", "across stains", "across both")
COSINE, LEADERBOARD = "cosine", "leaderboard"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPairs:
    """What plismbench's figures are made of, place by place: P pairs of scans, N positions.

    Attributes:
        cosines: `(P, N)` cosine of the twins; NaN where a pair does not share the position.
        top_10: `(P, N)` how many of the two twins find the other among the ten nearest, as a share; NaN likewise.
        top_k: k -> `(P,)` share of all tiles of a pair that do.
        kinds: `(P,)` one of `KINDS`; empty where scanner or stain are not known, or both are the same.
    """

    cosines: NDArray[np.float64]
    top_10: NDArray[np.float64]
    top_k: dict[int, NDArray[np.float64]]
    kinds: tuple[str, ...]


def scan_pairs(embeddings: NDArray[np.float32], positions: Sequence[str], scans: Sequence[Scan]) -> ScanPairs | None:
    """Compare every pair of scans of the same tissue (Filiot et al., plismbench; data CC BY 4.0).

    Args:
        embeddings: `(N, D)`.
        positions: `(N,)` the physical place of each tile; equal places on two scans are registered twins.
        scans: `(N,)` scan of each tile; none has two tiles at one place (`TileSet.positions`).

    Returns:
        All pairs, or None where no two scans share two positions.
    """
    unit = unit_rows(embeddings)
    names, places = np.unique(np.asarray(positions), return_inverse=True)
    row_at: dict[Scan, NDArray[np.int64]] = {}
    for row, (place, scan) in enumerate(zip(places, scans, strict=True)):
        row_at.setdefault(scan, np.full(len(names), -1))[place] = row
    cosines: list[NDArray[np.float64]] = []
    top_10: list[NDArray[np.float64]] = []
    ranks, kinds = [], []
    for one, two in combinations(sorted(row_at, key=lambda scan: scan.name), 2):
        shared = (row_at[one] >= 0) & (row_at[two] >= 0)
        if shared.sum() < 2:
            continue
        a, b = unit[row_at[one][shared]], unit[row_at[two][shared]]
        ranks.append(twin_ranks(a, b))
        for found, values in ((cosines, np.einsum("nd,nd->n", a, b)), (top_10, (ranks[-1] < 10).mean(axis=0))):
            found.append(np.full(len(names), np.nan))
            found[-1][shared] = values
        kinds.append(_kind(one, two))
    if not kinds:
        return None
    return ScanPairs(
        cosines=np.stack(cosines),
        top_10=np.stack(top_10),
        top_k={k: np.array([(rank < k).mean() for rank in ranks]) for k in TOP_K},
        kinds=tuple(kinds),
    )


def plism_bench(pairs: ScanPairs) -> PlismBench:
    """Plismbench's figures."""
    medians = _medians(pairs, np.ones((1, pairs.cosines.shape[1])))
    found = {name: float(values[0]) for name, values in medians.items()}
    return PlismBench(
        cosine=float(np.nanmean(pairs.cosines, axis=1).mean()),
        top_k={k: float(shares.mean()) for k, shares in pairs.top_k.items()},
        pairs=len(pairs.kinds),
        positions=int(np.isfinite(pairs.cosines).any(axis=0).sum()),
        cosine_median=found[COSINE],
        top_10_medians={kind: found[kind] for kind in KINDS if kind in found},
        leaderboard=found.get(LEADERBOARD),
    )


def plism_drops(reference: ScanPairs, candidate: ScanPairs, *, seed: int = 0) -> dict[str, Interval]:
    """Of each of the four medians, and of their mean, what the candidate lost, paired, with its interval by position.

    A resample draws positions, the same on every scan for both encoders; who is near whom stays as it is among all.

    Args:
        reference: From `scan_pairs`.
        candidate: On the same tiles.
        seed: Seed of the bootstrap.

    Returns:
        By `COSINE`, `KINDS` and `LEADERBOARD`, as far as there are such pairs.
    """
    seen = np.asarray(np.isfinite(reference.cosines).any(axis=0))
    units = int(seen.sum())
    whole = seen.astype(np.float64)[None]
    drawn = np.random.default_rng(seed).multinomial(units, whole[0] / units, size=RESAMPLES).astype(np.float64)
    lost = [
        {name: values - theirs[name] for name, values in ours.items()}
        for ours, theirs in ((_medians(reference, weights), _medians(candidate, weights)) for weights in (whole, drawn))
    ]
    return {
        name: drawn_interval(float(estimate[0]), lost[1][name], units=units, unit="position")
        for name, estimate in lost[0].items()
    }


def _medians(pairs: ScanPairs, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The medians over the pairs, each `(R,)`, of positions weighted by `(R, N)`; NaN where a pair has no position."""
    found = {COSINE: np.median(_means(pairs.cosines, weights), axis=1)}
    shares = _means(pairs.top_10, weights)
    for kind in KINDS:
        of_kind = np.array(pairs.kinds) == kind
        if of_kind.any():
            found[kind] = np.median(shares[:, of_kind], axis=1)
    if len(found) == 1 + len(KINDS):
        found[LEADERBOARD] = np.mean(list(found.values()), axis=0)
    return found


def _means(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(P, N)` values, NaN left out, and `(R, N)` weights: `(R, P)` means."""
    known = np.isfinite(values)
    total = weights @ known.T.astype(np.float64)
    means: NDArray[np.float64] = weights @ np.where(known, values, 0.0).T / np.where(total > 0, total, np.nan)
    return means


def _kind(one: Scan, two: Scan) -> str:
    """One of `KINDS`; empty where scanner or stain are not known, or both are the same."""
    if None in (one.scanner, one.stain, two.scanner, two.stain):
        return ""
    differ = (one.scanner != two.scanner, one.stain != two.stain)
    return {(True, False): KINDS[0], (False, True): KINDS[1], (True, True): KINDS[2]}.get(differ, "")


def twin_ranks(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the pooled 2n tiles are nearer than the twin by cosine, self excluded: `(2, n)`, of `a` and of `b`.

    The share of all 2n whose rank is below k is plismbench's top-k, averaged over both directions.

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
    return ranks.reshape(2, n)
