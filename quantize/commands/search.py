"""`atlas-quantize search`: run a search, save and show what it found."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.bench.options import Budget
from atlas_edge.errors import GateFailed, UsageError
from atlas_edge.quantize.options import DEFAULT_DROP_PP, Limits, SearchBudget
from atlas_edge.quantize.recipe import load_recipe
from atlas_edge.quantize.search.bench import MeasureConfig
from atlas_edge.quantize.search.report import REPORT
from atlas_edge.quantize.search.search import SearchConfig, search
from atlas_edge.spec import Precision, Target
from atlas_edge.system.atomic import check_vacant
from atlas_edge.tiles import open_tiles, without_split

if TYPE_CHECKING:
    from rich.console import Console


def search_config(
    limits: Limits,
    *,
    model: str,
    tiles: str,
    evaluation: str | None,
    target: Target,
    recipe: Path | None,
    budget: SearchBudget,
    out: Path,
    minutes: float,
    merge_tokens: bool = False,
) -> SearchConfig:
    """Fill in the defaults.

    Raises:
        UsageError: Tiles without splits and nothing to judge on.
    """
    given = Budget(**vars(budget))
    start = None if recipe is None else load_recipe(recipe)
    measure = MeasureConfig(
        model=model,
        tiles=tiles,
        evaluation=judged_on(tiles, evaluation),
        target=target,
        out=out,
        **vars(limits),
    )
    return SearchConfig(
        measure=measure,
        recipe=start,
        budget=given if given.limits else Budget(max_drop_pp=DEFAULT_DROP_PP),
        minutes=minutes,
        merge_tokens=merge_tokens,
    )


def judged_on(tiles: str, evaluation: str | None) -> str:
    """The tiles that judge: those that were named, or the test split of the others.

    Raises:
        UsageError: None were named, and the others have no splits.
    """
    if evaluation is not None:
        return evaluation
    if not open_tiles(tiles).splits():
        raise UsageError(
            f"{tiles} has no splits: a plan must be judged on tiles that it was not calibrated on",
            hint="give --eval other tiles",
        )
    return without_split(tiles)


def find_plan(config: SearchConfig, screen: "Console", *, overwrite: bool, dry_run: bool) -> dict[str, Any]:
    """Search, write the output folder, print a table, and return everything as data."""
    from atlas_edge.quantize.backend import measured_backend

    measure = config.measure
    check_vacant(measure.out, marks=(REPORT,), overwrite=overwrite)
    measured_backend(measure.target)
    if dry_run:
        screen.print(f"would search a plan for {measure.model} on {measure.target.value} and write {measure.out}")
        return {"target": measure.target.value, "budget": config.budget.limits}
    from atlas_edge.quantize.search.report import as_dict, rows, write_search

    result, bench = search(config, screen.print)
    path = write_search(result, config, overwrite=overwrite)
    bench.journal.remove()
    from rich.table import Table

    table = Table("plan", "throughput", "cosine median", "p1", "drop, 95 %", "flips", "gate")
    for row in rows(result):
        table.add_row(*row)
    screen.print(table)
    for reason in result.reasons:
        screen.print(reason)
    screen.print(f"chosen: {result.chosen.name}; {result.checked.sentence()}; {result.seconds:.0f} s")
    screen.print(f"next:   atlas-export {measure.model} --plan {path} --calib {measure.tiles}")
    return as_dict(result, config)


def check_found(shown: dict[str, Any]) -> None:
    """Raise GateFailed where a search kept full precision; its report and plan are kept."""
    chosen = shown.get("chosen")
    if chosen is not None and chosen["precision"] == Precision.FP32.value:
        raise GateFailed(
            "no plan is both faster than full precision and within the budget",
            hint="loosen the budget, give more --minutes or more tiles, or try another --recipe",
        )
