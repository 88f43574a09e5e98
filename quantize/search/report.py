"""What a search found: plan, JSON, Markdown, and the Pareto front as a picture."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.quantize.plan import SavedPlan, save_plan
from atlas_edge.quantize.search.accuracy import PlanAccuracy
from atlas_edge.quantize.search.search import SearchConfig, SearchResult, TriedPlan
from atlas_edge.system import hardware
from atlas_edge.system.atomic import atomic_folder

PLAN, REPORT, MARKDOWN, FRONT = "plan.json", "search.json", "search.md", "pareto.svg"


def write_search(result: SearchResult, config: SearchConfig, *, overwrite: bool) -> Path:
    """Write everything into `config.measure.out`; returns the path of the plan."""
    with atomic_folder(config.measure.out, marks=(REPORT,), overwrite=overwrite) as folder:
        save_plan(_saved(result, config), folder / PLAN)
        (folder / REPORT).write_text(json.dumps(as_dict(result, config), indent=2) + "\n", encoding="utf-8")
        (folder / MARKDOWN).write_text(markdown(result, config), encoding="utf-8")
        plot_front(result, folder / FRONT)
        if result.sensitivity is not None:
            from atlas_edge.quantize.sensitivity.measure import plot_sensitivity

            plot_sensitivity(result.sensitivity, folder / "sensitivity.svg")
    return config.measure.out / PLAN


def as_dict(result: SearchResult, config: SearchConfig) -> dict[str, Any]:
    """Everything that was measured."""
    front = {entry.plan.name for entry in pareto_front(result.tried)}
    return {
        "chosen": result.chosen.model_dump(mode="json"),
        "checked": result.checked.model_dump(mode="json"),
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
        "budget": config.budget.limits,
        "tried": [
            {
                "plan": entry.plan.model_dump(mode="json"),
                "accuracy": entry.accuracy.model_dump(mode="json"),
                "speed": entry.speed.model_dump(mode="json"),
                "verdict": entry.verdict.value,
                "pareto": entry.plan.name in front,
            }
            for entry in result.tried
        ],
        "sensitivity": None if result.sensitivity is None else result.sensitivity.as_dict(),
        "calibration": result.calibration.model_dump(mode="json"),
        "evaluation": result.evaluation.model_dump(mode="json"),
        "confirmation": result.confirmation.model_dump(mode="json"),
        "versions": hardware.versions(),
        "seconds": round(result.seconds, 1),
        "resumed_results": result.resumed,
    }


def pareto_front(tried: Sequence[TriedPlan]) -> list[TriedPlan]:
    """Plans that no other beats in throughput without costing more, fastest first.

    The cost is the drop where labels are known, the 1st percentile of the cosine elsewhere.
    """
    front: list[TriedPlan] = []
    for entry in sorted(tried, key=lambda entry: -entry.speed.ratio.estimate):
        if not front or _cost(entry) < min(_cost(other) for other in front):
            front.append(entry)
    return front


def markdown(result: SearchResult, config: SearchConfig) -> str:
    """`search.md`."""
    lines = [f"# {result.model.spec.name} on {config.measure.target.value}: {result.chosen.name}", ""]
    lines += [f"- {reason}" for reason in result.reasons]
    lines += [
        "",
        "| plan | throughput | cosine median | p1 | drop, 95 % | flips | gate |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
    calibration, evaluation = result.calibration, result.evaluation
    lines += [
        "",
        f"Calibrated on {calibration.tiles} tiles of {calibration.name}, chosen by the figures themselves"
        f"{_by_intervals(config)} on "
        f"{evaluation.tiles} of {evaluation.name}, confirmed on {result.confirmation.tiles} others. "
        "Throughput over full precision, 95 % interval, all plans taking turns.",
    ]
    return "\n".join(lines) + "\n"


def _by_intervals(config: SearchConfig) -> str:
    return " (of plans that merge tokens: by their whole intervals)" if config.merge_tokens else ""


def rows(result: SearchResult) -> list[tuple[str, ...]]:
    """A row a plan, for the terminal and Markdown."""
    found: list[tuple[str, ...]] = []
    for entry in result.tried:
        accuracy, ratio = entry.accuracy, entry.speed.ratio
        drop, flips = accuracy.drop_pp, accuracy.flip_percent
        found.append(
            (
                entry.plan.name,
                f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",
                f"{accuracy.cosine_median:.5f}",
                f"{accuracy.cosine_p1.estimate:.5f}",
                "" if drop is None else f"{drop.estimate:+.1f} pp [{drop.low:+.1f}, {drop.high:+.1f}]",
                "" if flips is None else f"{flips.estimate:.1f} %",
                entry.verdict.value,
            )
        )
    return found


def plot_front(result: SearchResult, path: Path) -> None:
    """Throughput against cost, as SVG: the probe's drop and the predictions that change; without labels the cosine."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = _LABELLED if result.tried[0].accuracy.drop_pp is not None else _UNLABELLED
    figure = Figure(figsize=(8.4, 1.2 + 2.6 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    front = pareto_front(result.tried)
    for axes, (name, figure_of) in zip(rows, panels.items(), strict=True):
        if axes is rows[0]:
            on_front = [(entry.speed.ratio.estimate, figure_of(entry.accuracy).estimate) for entry in front]
            axes.plot(*zip(*on_front, strict=True), "-", color="#999999", lw=1, zorder=1)
        for number, entry in enumerate(result.tried, 1):
            ratio, cost = entry.speed.ratio, figure_of(entry.accuracy)
            axes.errorbar(
                ratio.estimate, cost.estimate, xerr=_ends(ratio), yerr=_ends(cost), fmt="o", ms=5, elinewidth=0.7,
                color=_COLORS[entry.verdict], label=f"{number}  {entry.plan.name}" + _mark(entry, result),
            )  # fmt: skip
            place = (ratio.estimate, cost.estimate)
            axes.annotate(str(number), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_ylabel(name)
        axes.grid(lw=0.3)
    rows[-1].set_xlabel("throughput over full precision")
    title = "green passes the gate, orange is undecided, red fails; the line is the Pareto front"
    rows[0].set_title(title, loc="left", fontsize=9)
    rows[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    path.write_bytes(buffer.getvalue())


def _mark(entry: TriedPlan, result: SearchResult) -> str:
    return " (chosen)" if entry.plan == result.chosen else ""


def _ends(interval: Interval) -> list[list[float]]:
    return [[max(interval.estimate - interval.low, 0)], [max(interval.high - interval.estimate, 0)]]


def _saved(result: SearchResult, config: SearchConfig) -> SavedPlan:
    return SavedPlan(
        plan=result.chosen,
        model=result.model.provenance,
        calibration=None if result.chosen.recipe is None else result.calibration,
        calib_limit=config.measure.calib_limit,
        fit_limit=config.measure.fit_limit,
        seed=config.measure.seed,
        measured=result.checked.model_dump(mode="json"),
        versions=hardware.versions(),
    )


def _cost(entry: TriedPlan) -> float:
    accuracy = entry.accuracy
    return 1 - accuracy.cosine_p1.estimate if accuracy.drop_pp is None else accuracy.drop_pp.estimate


def _drop(accuracy: PlanAccuracy) -> Interval:
    assert accuracy.drop_pp is not None
    return accuracy.drop_pp


def _flips(accuracy: PlanAccuracy) -> Interval:
    assert accuracy.flip_percent is not None
    return accuracy.flip_percent


def _distance(accuracy: PlanAccuracy) -> Interval:
    p1 = accuracy.cosine_p1
    return replace(p1, estimate=1 - p1.estimate, low=1 - p1.high, high=1 - p1.low)


_LABELLED = {"accuracy drop, pp": _drop, "changed predictions, %": _flips}
_UNLABELLED = {"1 - cosine, 99th percentile": _distance}
_COLORS = {Verdict.PASS: "#009e73", Verdict.INCONCLUSIVE: "#e69f00", Verdict.FAIL: "#d55e00"}
