"""A plan's accuracy as a search keeps it, and the gate's verdict on it."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.bench.accuracy.drop import AccuracyDrop, accuracy_drop
from atlas_edge.bench.accuracy.tileset import TileSet
from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.budgets import Budgets, Judged, run_gate
from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.bench.options import Budget
from atlas_edge.encoder import Encoder

if TYPE_CHECKING:
    from atlas_edge.bench.accuracy.agreement import Agreement


class PlanAccuracy(BaseModel):
    """What a plan costs against full precision.

    Attributes:
        tiles: Tiles compared.
        cosine_median: Median cosine.
        cosine_p1: 1st percentile with its interval.
        cosine_worst: Smallest.
        drop_pp: Linear probe, fitted on the reference: balanced accuracy lost, percentage points; None without labels.
        flip_percent: Its predictions that change, per cent; None without labels.
        reference_score, score: Balanced accuracy of both, 0-1; None without labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: int
    cosine_median: float
    cosine_p1: Interval
    cosine_worst: float
    drop_pp: Interval | None = None
    flip_percent: Interval | None = None
    reference_score: float | None = None
    score: float | None = None

    def sentence(self) -> str:
        """The figures in one line."""
        text = f"cosine median {self.cosine_median:.5f}, p1 {self.cosine_p1.estimate:.5f}"
        if self.drop_pp is not None and self.flip_percent is not None:
            drop = self.drop_pp
            text += f", drop {drop.estimate:+.1f} pp [{drop.low:+.1f}, {drop.high:+.1f}]"
            text += f", flips {self.flip_percent.estimate:.1f} %"
        return text


def plan_accuracy(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    *,
    fitted: NDArray[np.float32] | None,
    fit: TileSet,
    evaluation: TileSet,
    seed: int,
) -> PlanAccuracy:
    """Compare embeddings of the evaluation tiles, as `atlas-bench accuracy` does.

    Args:
        reference: `(N, D)` in full precision.
        candidate: `(N, D)` of the plan.
        fitted: `(M, D)` of the tiles that fit the probe, in full precision; None where labels are missing.
        fit: Those tiles.
        evaluation: The tiles compared.
        seed: Seed of the bootstrap.
    """
    agreement = embedding_agreement(reference, candidate, groups=evaluation.group_numbers)
    drop = None
    if fitted is not None and fit.labels is not None and evaluation.labels is not None:
        drop = accuracy_drop(
            fit_features=fitted,
            fit_labels=fit.labels,
            reference=reference,
            candidate=candidate,
            labels=evaluation.labels,
            groups=evaluation.groups,
            method="linear",
            seed=seed,
        )
    return _as_accuracy(agreement, drop)


def recheck(reference: Encoder, candidate: Encoder, *, evaluation: TileSet, fit: TileSet | None) -> PlanAccuracy:
    """The report that `atlas-bench accuracy` prints, for one candidate."""
    from atlas_edge.bench.accuracy.measure import accuracy_report
    from atlas_edge.bench.options import AccuracyOptions

    report = accuracy_report(
        {"reference": reference, "plan": candidate},
        reference="reference",
        evaluation=evaluation,
        fit=fit,
        options=AccuracyOptions(stress_tiles=0),
    )
    found = report.candidates["plan"]
    assert found.agreement is not None
    return _as_accuracy(found.agreement, found.drop("linear"))


def judge_plan(accuracy: PlanAccuracy, budget: Budget) -> Verdict:
    """PASS only where every budget is kept over its whole interval.

    Raises:
        InputError: A budget for a figure that was not measured.
    """
    drop = None if accuracy.drop_pp is None else accuracy.drop_pp
    flips = None if accuracy.flip_percent is None else accuracy.flip_percent
    figures = [
        Judged(figure="drop", option="--max-drop", field="max_drop_pp", value=drop),
        Judged(figure="flips", option="--max-flips", field="max_flip_percent", value=flips),
        Judged(
            figure="1st percentile of the cosine",
            option="--min-cosine",
            field="min_cosine",
            value=accuracy.cosine_p1,
            higher_is_worse=False,
        ),
    ]
    return run_gate(Budgets(default=budget), {"plan": figures}).verdict


def keeps_budget(accuracy: PlanAccuracy, budget: Budget) -> bool:
    """Whether the figures themselves keep every budget, whatever their doubt: enough to try a plan further."""
    worse = [
        (accuracy.drop_pp, budget.max_drop_pp, 1),
        (accuracy.flip_percent, budget.max_flip_percent, 1),
        (accuracy.cosine_p1, budget.min_cosine, -1),
    ]
    return all(
        limit is None or (value is not None and sign * (value.estimate - limit) <= 0) for value, limit, sign in worse
    )


def _as_accuracy(agreement: "Agreement", drop: AccuracyDrop | None) -> PlanAccuracy:
    return PlanAccuracy(
        tiles=agreement.tiles,
        cosine_median=agreement.cosine_median,
        cosine_p1=agreement.cosine_p1_interval,
        cosine_worst=agreement.cosine_worst,
        drop_pp=None if drop is None else drop.interval,
        flip_percent=None if drop is None else drop.flip_interval.scaled(100.0),
        reference_score=None if drop is None else drop.reference_score,
        score=None if drop is None else drop.candidate_score,
    )
