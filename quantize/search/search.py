"""The cheapest precision plan whose accuracy gate passes on the target's runtime, measured there."""

import time
from dataclasses import dataclass

import numpy as np

from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.bench.options import Budget
from atlas_edge.errors import UsageError
from atlas_edge.manifest import TilesProvenance
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.plan import Plan
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.quantize.search.accuracy import PlanAccuracy, judge_plan, keeps_budget
from atlas_edge.quantize.search.bench import REFERENCE, MeasureConfig, PlanBench, Say
from atlas_edge.quantize.search.candidates import first_plans, gentler_plans, merging_plans
from atlas_edge.quantize.search.journal import key_of
from atlas_edge.quantize.search.timing import PlanSpeed, faster_than
from atlas_edge.quantize.sensitivity.measure import Sensitivity, measure_sensitivity
from atlas_edge.quantize.sensitivity.toggles import ToggledEncoder
from atlas_edge.spec import Precision
from atlas_edge.tiles import provenance

SENSITIVITY_TILES = 12
_RANGE_TILES = 32
# Share of the time that is kept for the race and the last check.
_RESERVE = 0.35
# Tried whatever the time: everything in INT8, and half precision to compare it with.
_MUST = 2
# Plans that may be confirmed on the tiles kept for it: each one more makes a lucky PASS likelier.
_LOOKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What is searched.

    Attributes:
        measure: Model, tiles and target.
        budget: What a plan may cost.
        recipe: INT8 recipe to start from; the target's default when None.
        minutes: No further plan is tried once this would be exceeded.
        merge_tokens: Where INT8 passes, try plans that merge tokens, too.
    """

    measure: MeasureConfig
    budget: Budget
    recipe: Recipe | None = None
    minutes: float = 8.0
    merge_tokens: bool = False

    @property
    def int8(self) -> Recipe:
        """The recipe to start from."""
        return self.recipe or backend_of(self.measure.target).recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedPlan:
    """A plan that was measured.

    Attributes:
        plan: What was tried.
        accuracy: Measured on the target.
        speed: Measured beside all others.
        verdict: On the tiles that choose. PASS where the figures themselves keep the budget, or, of a plan that merges
            more tokens than the recipe begun with, where their whole intervals do (INCONCLUSIVE where the figures alone
            do); FAIL elsewhere.
    """

    plan: Plan
    accuracy: PlanAccuracy
    speed: PlanSpeed
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        chosen: The plan to keep; full precision where none passes.
        tried: Every plan that was measured, full precision first.
        checked: Figures of the chosen plan by `atlas-bench accuracy`'s own report, from its file on disk, on tiles that
            did not choose it.
        verdict: Of that check; PASS for full precision.
        reasons: Why this plan, in sentences.
        sensitivity: Of the layers, where it was needed.
        model: As loaded.
        calibration: Tiles that set the scales.
        evaluation: Tiles that chose.
        confirmation: Tiles that confirmed.
        seconds: Wall time of this run.
        resumed: Results taken over from an earlier run.
    """

    chosen: Plan
    tried: tuple[TriedPlan, ...]
    checked: PlanAccuracy
    verdict: Verdict
    reasons: tuple[str, ...]
    sensitivity: Sensitivity | None
    model: LoadedModel
    calibration: TilesProvenance
    evaluation: TilesProvenance
    confirmation: TilesProvenance
    seconds: float
    resumed: int


def search(config: SearchConfig, say: Say) -> tuple[SearchResult, PlanBench]:
    """Search; a search that was killed goes on where it was.

    Args:
        config: What to search.
        say: Where a line of progress goes.

    Returns:
        What was found, and the bench, whose journal is to be removed once the result is saved.

    Raises:
        RuntimeMissing: The target cannot be measured here.
        UsageError: A budget on labels that the tiles do not have.
        InputError: A model or tile cannot be read, or calibration and evaluation share a slide.
    """
    started = time.monotonic()
    bench = PlanBench(config.measure, say, confirm=True)
    _check_labels(bench, config.budget)
    measured, sensitivity = _try_plans(bench, config, started)
    speeds = bench.race([plan for plan, _ in measured])
    tried = [
        TriedPlan(plan=plan, accuracy=found, speed=speeds[plan.name], verdict=_first_verdict(plan, found, config))
        for plan, found in measured
    ]
    chosen, checked, reasons = _choose(bench, tried, config.budget)
    calibration, evaluation = bench.provenances()
    result = SearchResult(
        chosen=chosen,
        tried=tuple(tried),
        checked=checked,
        verdict=judge_plan(checked, config.budget),
        reasons=tuple(reasons),
        sensitivity=sensitivity,
        model=bench.model,
        calibration=calibration,
        evaluation=evaluation,
        confirmation=provenance(bench.confirmation.source, bench.confirmation.records),
        seconds=time.monotonic() - started,
        resumed=bench.journal.resumed,
    )
    return result, bench


def preferred(passing: list[TriedPlan]) -> tuple[TriedPlan, list[str]]:
    """INT8 only where it is measurably faster than the best half-precision plan that passes, too.

    Args:
        passing: At least one plan, the fastest first.

    Returns:
        The plan, and why in sentences.
    """
    integer = next((entry for entry in passing if entry.plan.recipe is not None), None)
    half = next((entry for entry in passing if entry.plan.recipe is None), None)
    if integer is None or half is None:
        return passing[0], []
    ratio = faster_than(integer.speed, half.speed)
    figure = f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.low > 1:
        return integer, [f"{integer.plan.name} has {figure} of the throughput of {half.plan.name}"]
    return half, [
        f"INT8 is not measurably faster than {half.plan.name.upper()} on this target: {integer.plan.name} has {figure} "
        f"of its throughput; {half.plan.name} is kept, which changes embeddings less"
    ]


def _check_labels(bench: PlanBench, budget: Budget) -> None:
    if not bench.labelled and (budget.max_drop_pp is not None or budget.max_flip_percent is not None):
        raise UsageError(
            "--max-drop and --max-flips need labels on both tile sets",
            hint="give labelled tiles, or judge by --min-cosine alone",
        )


def _try_plans(
    bench: PlanBench, config: SearchConfig, started: float
) -> tuple[list[tuple[Plan, PlanAccuracy]], Sensitivity | None]:
    """Measure plans until one that leaves out layers passes, or the time is up."""
    target = config.measure.target
    reference = Plan(name=REFERENCE, target=target, precision=Precision.FP32)
    measured = [(reference, bench.measure(reference))]
    slowest_s = 0.0

    def attempt(plan: Plan, *, optional: bool) -> bool:
        """Whether the plan was measured, and its figures keep the budget."""
        nonlocal slowest_s
        known, begun = bench.known(plan), time.monotonic()
        limit_s = 60 * config.minutes * (1 - _RESERVE)
        if known is None and optional and begun - started + slowest_s > limit_s:
            bench.say(f"{plan.name}: not tried, {config.minutes:g} minutes would not be enough (--minutes)")
            return False
        accuracy = bench.measure(plan)
        measured.append((plan, accuracy))
        took_s = time.monotonic() - begun
        slowest_s = max(slowest_s, took_s)
        verdict = _first_verdict(plan, accuracy, config)
        when = "known from before" if known is not None else f"{took_s:.0f} s"
        bench.say(f"{plan.name}: {verdict}; {accuracy.sentence()}; {when}")
        return verdict is not Verdict.FAIL

    everything = False
    for number, plan in enumerate(first_plans(target, bench.backend.float_precisions(), config.int8)):
        passes = attempt(plan, optional=number >= _MUST)
        everything = everything or (number == 0 and passes)
    if everything:
        bench.say("everything in INT8 passes: no layer needs to be left out")
        merging = merging_plans(target, bench.model.module, config.int8) if config.merge_tokens else []
        if config.merge_tokens and not merging:
            bench.say("this network cannot merge tokens")
        for plan in merging:
            # The first that fails is the last: it shows on the front what more would cost.
            if not attempt(plan, optional=True):
                break
        return measured, None
    sensitivity = _sensitivity(bench, config)
    for plan in gentler_plans(target, sensitivity, config.int8):
        if attempt(plan, optional=True):
            break
    return measured, sensitivity


def _first_verdict(plan: Plan, accuracy: PlanAccuracy, config: SearchConfig) -> Verdict:
    if not keeps_budget(accuracy, config.budget):
        return Verdict.FAIL
    # Merging always costs something: of many factors the luckiest on few tiles would win.
    return judge_plan(accuracy, config.budget) if _merging(plan) > config.int8.merge_tokens else Verdict.PASS


def _merging(plan: Plan) -> float:
    """How many times less the blocks of its network compute."""
    return 1.0 if plan.recipe is None else plan.recipe.merge_tokens


def _sensitivity(bench: PlanBench, config: SearchConfig) -> Sensitivity:
    key = f"sensitivity {key_of(config.int8.model_dump(mode='json'))}"
    known = bench.journal.get(key)
    if known is None:
        bench.say("the gate does not pass with everything in INT8: which layers cost most?")
        tiles = np.concatenate(bench.material.calibration)
        apart = min(SENSITIVITY_TILES, len(tiles) // 2)
        ranges = tiles[apart : apart + _RANGE_TILES]
        encoder = ToggledEncoder(bench.model.module, ranges, config.int8, symmetric=bench.backend.symmetric)
        known = measure_sensitivity(encoder, tiles[:apart], recipe=config.int8.name, without=False).as_dict()
        bench.journal.put(key, known)
    return Sensitivity.from_dict(known)


def _choose(bench: PlanBench, tried: list[TriedPlan], budget: Budget) -> tuple[Plan, PlanAccuracy, list[str]]:
    """The fastest plan that passes, unless half precision is as fast; confirmed on other tiles, from its file."""
    passing = sorted(
        (entry for entry in tried[1:] if entry.verdict is Verdict.PASS), key=lambda entry: -entry.speed.ratio.estimate
    )
    reasons: list[str] = [] if passing else ["no reduced-precision plan passes the gate: full precision is kept"]
    for look in range(1, _LOOKS + 1):
        if not passing:
            break
        best, why = preferred(passing)
        reasons += why
        if best.speed.ratio.estimate <= 1:
            reasons.append(f"{best.plan.name} is no faster than full precision here, which is kept")
            break
        checked = bench.recheck(best.plan)
        verdict = judge_plan(checked, budget)
        before = "" if look == 1 else ", as the second plan on these tiles"
        reasons.append(
            f"{best.plan.name}, opened again from its file and judged by atlas-bench's report on {checked.tiles} tiles "
            f"that did not choose it{before}: {verdict}; {checked.sentence()}"
        )
        if verdict is Verdict.PASS:
            return best.plan, checked, reasons
        passing = _more_careful(passing, than=best)
    return tried[0].plan, tried[0].accuracy, reasons


def _more_careful(passing: list[TriedPlan], *, than: TriedPlan) -> list[TriedPlan]:
    """What is looked at after a plan was not confirmed: if it merged tokens, all that merge none, else the closest."""
    others = [entry for entry in passing if entry is not than]
    if _merging(than.plan) > 1:
        return [entry for entry in others if _merging(entry.plan) == 1]
    return [max(others, key=lambda entry: entry.accuracy.cosine_median)] if others else []
