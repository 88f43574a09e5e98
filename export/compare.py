"""The bundle against the full-precision encoder, on the same tiles: agreement, drop, and the gate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import P1, Agreement, embedding_agreement, tile_cosines
from atlas_edge.bench.accuracy.drop import AccuracyDrop, accuracy_drop
from atlas_edge.bench.accuracy.probe import ProbeMethod
from atlas_edge.bench.accuracy.tileset import TileSet, embed_tiles
from atlas_edge.bench.judge.gate import Verdict, judge, units_to_settle
from atlas_edge.encoder import Encoder
from atlas_edge.export.steps import Steps

METHODS: tuple[ProbeMethod, ...] = ("linear", "knn")


_TOKEN_TILES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAgreement:
    """Patch tokens of the bundle and of the reference, token by token.

    Attributes:
        tiles: Tiles compared, the first of the evaluation tiles.
        cosine_median: Median cosine similarity over all tokens.
        cosine_p1: 1st percentile.
        cosine_worst: Smallest.
    """

    tiles: int
    cosine_median: float
    cosine_p1: float
    cosine_worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the comparison found.

    Attributes:
        agreement: Embeddings, tile by tile.
        drops: One a probe; empty where the tiles have no labels.
        fit_tiles: Tiles that the probes were fitted on.
        eval_tiles: Tiles that both encoders were compared on.
        worst_tiles: Ids of the least similar tiles, worst first.
        verdict: The gate's, or None without a budget.
        tiles_to_settle: How many tiles would settle an inconclusive verdict, where a number would.
        tokens: Patch tokens; None for a bundle that gives none.
    """

    agreement: Agreement
    drops: dict[str, AccuracyDrop]
    fit_tiles: int
    eval_tiles: int
    worst_tiles: tuple[str, ...]
    verdict: Verdict | None
    tiles_to_settle: int | None
    tokens: TokenAgreement | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What an encoder made of the tiles of a comparison.

    Attributes:
        tested: `(N, D)` of the evaluation tiles.
        fitted: `(M, D)` of the tiles that probes are fitted on; None where there are none.
        tokens: `(T, N, C)` patch tokens of the first evaluation tiles; None of an encoder that gives none.
    """

    tested: NDArray[np.float32]
    fitted: NDArray[np.float32] | None = None
    tokens: NDArray[np.float32] | None = None


def embed_compared(
    encoders: Mapping[str, Encoder], *, fit: TileSet | None, evaluation: TileSet, steps: Steps
) -> dict[str, Compared]:
    """Embed the evaluation tiles with every encoder, and those that fit the probes with `reference`.

    Args:
        encoders: Name -> encoder: both at once, or one after the other where two are too large for the memory.
        fit: Labelled tiles, disjoint from the evaluation's; None skips the probes.
        evaluation: Tiles to compare on.
        steps: Where progress goes.
    """
    probed = fit if evaluation.labels is not None and "reference" in encoders else None
    total = len(encoders) * len(evaluation.records) + (len(probed.records) if probed else 0)
    with steps.progress("embedding", total) as advance:
        tested = embed_tiles(encoders, evaluation, progress=advance)
        fitted = embed_tiles({"reference": encoders["reference"]}, probed, progress=advance) if probed else {}
        tokens = {name: _tokens(encoder, evaluation) for name, encoder in encoders.items()}
    return {
        name: Compared(tested=found, fitted=fitted.get(name), tokens=tokens[name]) for name, found in tested.items()
    }


def compare_with_reference(
    reference: Compared,
    bundle: Compared,
    *,
    fit: TileSet | None,
    evaluation: TileSet,
    max_drop_pp: float | None,
    seed: int,
) -> Verification:
    """Compare what both encoders made of the evaluation tiles.

    Args:
        reference: Of the full-precision encoder.
        bundle: Of what was built.
        fit: As in `embed_compared`.
        evaluation: Likewise.
        max_drop_pp: Budget on the upper end of the linear probe's drop, percentage points.
        seed: Seed of the bootstrap.
    """
    tested, fitted = {"reference": reference.tested, "bundle": bundle.tested}, reference.fitted
    agreement = embedding_agreement(tested["reference"], tested["bundle"], groups=evaluation.group_numbers)
    drops = {} if fit is None or fitted is None else _drops(tested, evaluation, fitted, fit, seed)
    verdict = tiles = None
    if max_drop_pp is not None and drops:
        verdict = judge(drops["linear"].interval, max_drop_pp)
        if verdict is Verdict.INCONCLUSIVE:
            tiles = units_to_settle(drops["linear"].interval, max_drop_pp)
    return Verification(
        agreement=agreement,
        drops=drops,
        fit_tiles=0 if fitted is None else len(fitted),
        eval_tiles=len(evaluation.records),
        worst_tiles=tuple(evaluation.records[index].id for index in agreement.worst),
        verdict=verdict,
        tiles_to_settle=tiles,
        tokens=_compare_tokens(reference.tokens, bundle.tokens),
    )


def _tokens(encoder: Encoder, evaluation: TileSet) -> NDArray[np.float32] | None:
    if encoder.spec.tokens is None:
        return None
    few = replace(evaluation, records=evaluation.records[:_TOKEN_TILES])
    return encoder.encode_tokens(few.pixels(encoder.spec.tile_px))[1]


def _compare_tokens(expected: NDArray[np.float32] | None, found: NDArray[np.float32] | None) -> TokenAgreement | None:
    if expected is None or found is None:
        return None
    cosines = tile_cosines(expected.reshape(-1, expected.shape[2]), found.reshape(-1, found.shape[2]))
    return TokenAgreement(
        tiles=len(found),
        cosine_median=float(np.median(cosines)),
        cosine_p1=float(np.quantile(cosines, P1)),
        cosine_worst=float(cosines.min()),
    )


def _drops(
    tested: dict[str, NDArray[np.float32]], evaluation: TileSet, fitted: NDArray[np.float32], fit: TileSet, seed: int
) -> dict[str, AccuracyDrop]:
    if fit.labels is None or evaluation.labels is None:
        return {}
    return {
        method: accuracy_drop(
            fit_features=fitted,
            fit_labels=fit.labels,
            reference=tested["reference"],
            candidate=tested["bundle"],
            labels=evaluation.labels,
            groups=evaluation.groups,
            method=method,
            seed=seed,
        )
        for method in METHODS
    }
