"""The bundle against the full-precision encoder, on the same tiles: agreement, drop, and the gate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import Agreement, embedding_agreement
from atlas_edge.bench.accuracy.drop import AccuracyDrop, accuracy_drop
from atlas_edge.bench.accuracy.probe import ProbeMethod
from atlas_edge.bench.accuracy.tileset import TileSet, embed_tiles
from atlas_edge.bench.judge.gate import Verdict, judge, units_to_settle
from atlas_edge.encoder import Encoder
from atlas_edge.export.steps import Steps

METHODS: tuple[ProbeMethod, ...] = ("linear", "knn")


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
    """

    agreement: Agreement
    drops: dict[str, AccuracyDrop]
    fit_tiles: int
    eval_tiles: int
    worst_tiles: tuple[str, ...]
    verdict: Verdict | None
    tiles_to_settle: int | None

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What an encoder made of the tiles of a comparison.

    Attributes:
        tested: `(N, D)` of the evaluation tiles.
        fitted: `(M, D)` of the tiles that probes are fitted on; None where there are none.
    """

    tested: NDArray[np.float32]
    fitted: NDArray[np.float32] | None = None


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
    return {name: Compared(tested=found, fitted=fitted.get(name)) for name, found in tested.items()}


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
