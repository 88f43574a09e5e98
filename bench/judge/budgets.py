"""Budgets of the gate, and what they say about measured candidates."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_edge.bench.accuracy.agreement import P1, Agreement
from atlas_edge.bench.accuracy.measure import AccuracyReport
from atlas_edge.bench.interval import FEWEST_GROUPS, Interval
from atlas_edge.bench.judge.gate import Verdict, judge, units_to_settle, units_to_settle_quantile, worst
from atlas_edge.bench.options import Budget
from atlas_edge.bench.speed.figures import SpeedReport
from atlas_edge.errors import InputError


class Budgets(BaseModel):
    """A TOML file of budgets: one for all, and others for candidates whose names match a pattern.

    ```toml
    [default]
    max_drop_pp = 1.0
    min_cosine = 0.99

    [candidate."*bf16*"]
    max_drop_pp = 0.5
    ```

    A pattern's values replace the default's one by one; of several matching patterns the last one in the file wins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: Budget = Budget()
    candidate: dict[str, Budget] = Field(default_factory=dict)

    def overridden(self, options: Budget) -> "Budgets":
        """These budgets with the values of `options` in place of the file's, for every candidate."""
        return Budgets(
            default=replace(self.default, **options.limits),
            candidate={pattern: replace(budget, **options.limits) for pattern, budget in self.candidate.items()},
        )

    @property
    def empty(self) -> bool:
        """Whether nothing at all is judged."""
        return not any(budget.limits for budget in (self.default, *self.candidate.values()))

    def of(self, name: str) -> Budget:
        """The budget of one candidate."""
        found = self.default
        for pattern, budget in self.candidate.items():
            if fnmatchcase(name, pattern):
                found = replace(found, **budget.limits)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """One budget, judged.

    Attributes:
        candidate: Name of the encoder.
        figure: What was judged, in words.
        option: The option that sets the budget.
        value: The figure with its interval, in the budget's unit.
        budget: The limit.
        higher_is_worse: Whether the limit is the most, or the least, that is allowed.
        verdict: PASS, FAIL or INCONCLUSIVE.
        advice: What would settle or mend it; empty after PASS.
    """

    candidate: str
    figure: str
    option: str
    value: Interval
    budget: float
    higher_is_worse: bool
    verdict: Verdict
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """All checks, and the worst verdict among them."""

    verdict: Verdict
    checks: tuple[GateCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A figure that a budget may judge; `value` None means that it was not measured.

    A 1st percentile brings the tiles' values, `p1_of`, and how many independent tiles they are worth.
    """

    figure: str
    option: str
    field: str
    value: Interval | None
    higher_is_worse: bool = True
    tiles: int = 0
    p1_of: tuple[float, ...] = ()
    effective_tiles: float = 0.0


def read_budgets(path: Path) -> Budgets:
    """Read a TOML file of budgets.

    Raises:
        InputError: Not there, not TOML, or with a key or value that does not fit.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return Budgets.model_validate(data)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist, expected a TOML file of budgets") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {where}: {first['msg']}", hint=f"known budgets: {', '.join(vars(Budget()))}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file: {error}") from error


def run_gate(budgets: Budgets, figures: dict[str, list[Judged]]) -> GateResult:
    """Judge every candidate's figures against its budget.

    Args:
        budgets: Limits.
        figures: Candidate -> what was measured (`judged_figures`).

    Raises:
        InputError: A budget is set for a figure that was not measured, or for a candidate that is not there: a gate
            never passes what nobody looked at.
    """
    checks: list[GateCheck] = []
    for pattern in budgets.candidate:
        if not any(fnmatchcase(name, pattern) for name in figures):
            raise InputError(
                f'[candidate."{pattern}"] matches none of {", ".join(figures)}',
                hint="name the bundle's folder, with * for any letters",
            )
    for name, judged in figures.items():
        checks.extend(_checks(name, budgets.of(name), judged))
    return GateResult(verdict=worst([check.verdict for check in checks]), checks=tuple(checks))


def judged_figures(accuracy: AccuracyReport, speed: SpeedReport | None = None) -> dict[str, list[Judged]]:
    """Candidate -> every figure that a budget may judge, measured or not."""
    return {name: _figures(accuracy, speed, name) for name in accuracy.candidates}


def judged_cosine(agreement: Agreement | None, cosines: Sequence[float]) -> Judged:
    """The 1st percentile of the cosine.

    Args:
        agreement: None where it was not measured.
        cosines: `(N,)` of every tile.
    """
    return Judged(
        figure="cosine, 1st percentile",
        option="--min-cosine",
        field="min_cosine",
        value=None if agreement is None else agreement.cosine_p1_interval,
        higher_is_worse=False,
        tiles=len(cosines),
        p1_of=tuple(cosines),
        effective_tiles=0.0 if agreement is None else agreement.effective_tiles or len(cosines),
    )


def _figures(accuracy: AccuracyReport, speed: SpeedReport | None, name: str) -> list[Judged]:
    found = accuracy.candidates[name]
    linear, knn, agreement = found.drop("linear"), found.drop("knn"), found.agreement
    tiles = 0 if agreement is None else agreement.tiles
    ratio = None if speed is None or name not in speed.encoders else speed.encoders[name].throughput_ratio

    def drop(figure: str, option: str, field: str, value: Interval | None) -> Judged:
        return Judged(figure=figure, option=option, field=field, value=value, tiles=tiles)

    return [
        drop("linear probe drop, pp", "--max-drop", "max_drop_pp", None if linear is None else linear.interval),
        drop("kNN probe drop, pp", "--max-knn-drop", "max_knn_drop_pp", None if knn is None else knn.interval),
        drop(
            "changed predictions, %",
            "--max-flip",
            "max_flip_percent",
            None if linear is None else linear.flip_interval.scaled(100),
        ),
        judged_cosine(agreement, found.cosines),
        drop("robustness index drop", "--max-robustness-drop", "max_robustness_drop", found.robustness_drop),
        Judged(
            figure="throughput over the reference's",
            option="--min-throughput-ratio",
            field="min_throughput_ratio",
            value=ratio,
            higher_is_worse=False,
        ),
    ]


def _checks(name: str, budget: Budget, judged: list[Judged]) -> Iterable[GateCheck]:
    for figure in judged:
        limit = getattr(budget, figure.field)
        if limit is None:
            continue
        if figure.value is None:
            raise InputError(
                f"{name}: {figure.option} is set, but {figure.figure} could not be measured on these tiles",
                hint="give labelled tiles with --eval and --fit, measure speed with --speed, or leave the budget out",
            )
        verdict = judge(figure.value, limit, higher_is_worse=figure.higher_is_worse)
        yield GateCheck(
            candidate=name,
            figure=figure.figure,
            option=figure.option,
            value=figure.value,
            budget=limit,
            higher_is_worse=figure.higher_is_worse,
            verdict=verdict,
            advice=_advice(verdict, figure, limit),
        )


def _advice(verdict: Verdict, figure: Judged, limit: float) -> str:
    assert figure.value is not None
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "quantize it more gently (fewer layers, another recipe, more calibration tiles), or loosen the budget"
    if figure.p1_of:
        values = np.asarray(figure.p1_of)
        units = units_to_settle_quantile(values, P1, limit, figure.value, figure.effective_tiles)
    else:
        units = units_to_settle(figure.value, limit)
    if units is None:
        return (
            f"the estimate lies on the budget, or there is one {figure.value.unit} only: no number of tiles settles it"
        )
    if figure.value.unit == "group":
        tiles = figure.tiles * units / figure.value.units
        few = (
            f"; below {FEWEST_GROUPS} nothing passes, as a kind of slide that is one in ten may not be among them"
            if figure.value.units < FEWEST_GROUPS
            else ""
        )
        return (
            f"about {units} groups ({tiles:.0f} tiles like these) would settle it; there are {figure.value.units}{few}"
        )
    if figure.value.unit == "round":
        return f"about {units} rounds would settle it (--rounds); there were {figure.value.units}"
    return f"about {units} tiles would settle it; there are {figure.value.units}"
