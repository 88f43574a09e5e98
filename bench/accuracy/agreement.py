"""How alike two encoders' embeddings of the same tiles are, without labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, effective_tiles, exact_interval, quantile_interval
from atlas_edge.errors import InputError

P1 = 0.01
FEWEST_TILES = 368
"""Independent tiles of which the worst is a lower end of the 1st percentile: 0.99^368 < 0.025."""

WORST_TILES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of a candidate's embeddings with the reference's, tile by tile.

    Attributes:
        tiles: Tiles compared.
        cosine_median: Median cosine similarity.
        cosine_p1: 1st percentile, with its interval in `cosine_p1_interval`.
        cosine_p1_interval: By order statistics, by group where groups are known; `low` is -1 where there are too few
            tiles for a lower end (368 independent ones), or too few groups.
        cosine_worst: Smallest.
        worst: Indices of the worst tiles, worst first.
        worst_cosines: Their cosines, in the same order.
        cka: Linear centred kernel alignment, 0-1 (Kornblith et al., ICML 2019, eq. 3).
        retrieval_top1: Share of tiles whose nearest reference embedding, by the candidate's, is that of the same tile.
        norm_ratio_median: Median of |candidate| / |reference|.
        identical: Whether every number is equal, bit for bit.
        effective_tiles: Independent tiles that the set is worth for the 1st percentile; all of them without groups.
            None where it was not measured.
    """

    tiles: int
    cosine_median: float
    cosine_p1: float
    cosine_p1_interval: Interval
    cosine_worst: float
    worst: tuple[int, ...]
    worst_cosines: tuple[float, ...]
    cka: float
    retrieval_top1: float
    norm_ratio_median: float
    identical: bool
    effective_tiles: float | None = None


def embedding_agreement(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    *,
    groups: NDArray[np.int64] | None = None,
) -> Agreement:
    """Compare two encoders' embeddings of the same tiles.

    Args:
        reference: `(N, D)` embeddings of the full-precision encoder.
        candidate: `(N, D)` embeddings of the same tiles in the same order.
        groups: `(N,)` slide or patient numbers for the interval.

    Raises:
        InputError: The shapes differ, there are fewer than two tiles, or an embedding is not finite or is zero.
    """
    cosines = tile_cosines(reference, candidate)
    order = np.argsort(cosines, kind="stable")[:WORST_TILES]
    identical = bool(np.array_equal(reference, candidate))
    p1 = quantile_interval(cosines, P1, groups)
    if identical:
        p1 = exact_interval(p1.estimate, p1)
    norms = np.linalg.norm(candidate, axis=1) / np.linalg.norm(reference, axis=1)
    return Agreement(
        tiles=len(cosines),
        cosine_median=float(np.median(cosines)),
        cosine_p1=p1.estimate,
        cosine_p1_interval=p1,
        cosine_worst=float(cosines.min()),
        worst=tuple(int(i) for i in order),
        worst_cosines=tuple(float(cosines[i]) for i in order),
        cka=linear_cka(reference, candidate),
        retrieval_top1=same_tile_retrieval(reference, candidate),
        norm_ratio_median=float(np.median(norms)),
        identical=identical,
        effective_tiles=effective_tiles(cosines, P1, groups),
    )


def tile_cosines(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine similarity of each pair of rows, `(N,)`.

    Raises:
        InputError: See `embedding_agreement`.
    """
    if reference.ndim != 2 or reference.shape != candidate.shape or len(reference) < 2:
        raise InputError(
            f"embeddings have shapes {reference.shape} and {candidate.shape}, expected the same (N, D), N >= 2",
            hint="compare encoders of one model and embed the same tiles with both",
        )
    a = unit_rows(reference, "reference")
    b = unit_rows(candidate, "candidate")
    # Rounding can put the cosine of equal vectors just above 1.
    cosines: NDArray[np.float64] = np.clip(np.einsum("nd,nd->n", a, b), -1.0, 1.0)
    # And just below it: a budget of 1 asks for equality, and equal vectors keep it.
    cosines[(reference == candidate).all(axis=1)] = 1.0
    return cosines


def unit_rows(embeddings: NDArray[np.float32], name: str = "encoder") -> NDArray[np.float64]:
    """L2-normalised rows in float64.

    Raises:
        InputError: An embedding is not finite, or all zero.
    """
    rows = embeddings.astype(np.float64)
    bad = ~np.isfinite(rows).all(axis=1)
    norms = np.linalg.norm(np.where(np.isfinite(rows), rows, 0.0), axis=1)
    bad |= norms == 0
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(rows)} embeddings of the {name} are NaN, infinite or zero "
            f"(first: tile {int(bad.argmax())})",
            hint="the encoder is broken on this runtime: export with another precision (fp16 overflows first)",
        )
    unit: NDArray[np.float64] = rows / norms[:, None]
    return unit


def linear_cka(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Linear centred kernel alignment of two embeddings of the same tiles, 0-1; NaN where one is constant."""
    x = reference.astype(np.float64) - reference.mean(axis=0, dtype=np.float64)
    y = candidate.astype(np.float64) - candidate.mean(axis=0, dtype=np.float64)
    cross = np.linalg.norm(x.T @ y) ** 2
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(cross / own) if own > 0 else float("nan")


def same_tile_retrieval(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Share of the candidate's embeddings whose nearest neighbour by cosine among the reference's is their own tile.

    A tile that ties with its own (an exact duplicate in the set) counts as found.
    """
    bank, queries = unit_rows(reference, "reference"), unit_rows(candidate, "candidate")
    found = 0
    for start in range(0, len(queries), 1024):  # bounds memory at 1024 x N similarities
        similarity = queries[start : start + 1024] @ bank.T
        own = np.einsum("nd,nd->n", queries[start : start + 1024], bank[start : start + 1024])
        found += int((similarity.max(axis=1) <= own + 1e-9).sum())
    return found / len(queries)
