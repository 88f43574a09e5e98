"""Every recipe of a model on a target, measured, as a table between markers that the next run replaces.

The tables in docs/ are made by it; a killed run goes on when repeated:

    python tools/quantization_table.py FILE MODEL TILES --target openvino
"""

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atlas_edge.cli import console, make_app, run_app, set_verbosity
from atlas_edge.errors import InputError
from atlas_edge.options import Quiet, Verbose
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.commands.search import judged_on
from atlas_edge.quantize.plan import Plan
from atlas_edge.quantize.recipe import Recipe, load_recipe, nncf_as_it_comes
from atlas_edge.quantize.search.accuracy import PlanAccuracy
from atlas_edge.quantize.search.bench import REFERENCE, MeasureConfig, PlanBench
from atlas_edge.quantize.search.timing import PlanSpeed, faster_than
from atlas_edge.spec import Precision, Target
from atlas_edge.system import hardware
from atlas_edge.system.atomic import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES = {Target.OPENVINO: ("openvino", "nncf"), Target.ONNX: ("onnxruntime", "nvidia-modelopt")}
_COMPARED = {Target.OPENVINO: (nncf_as_it_comes(),)}
_HEAD = (
    "| recipe | throughput over f32 | cosine median | p1 | probe drop, 95 % | flips |\n|---|---:|---:|---:|---:|---:|"
)


app = make_app("quantization_table", __doc__ or "")


@app.default
def table(
    file: Path,
    model: str,
    tiles: str,
    /,
    *,
    target: Literal["openvino", "onnx"] = "openvino",
    eval: str | None = None,
    recipe: list[Path] | None = None,
    calib_limit: int = 300,
    fit_limit: int = 1500,
    eval_limit: int = 2000,
    threads: int | None = None,
    seed: int = 0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model's recipes on a target and put the table into a Markdown file. A killed run goes on when repeated.

    Args:
        file: Markdown file; the section of this model and target is replaced, others stay.
        model: Registry name, model folder, or hf-hub:organisation/name.
        tiles: Tiles that calibrate and fit the probe; the train split where there are splits.
        target: Whose runtime measures.
        eval: Tiles that judge; the test split of TILES when left out.
        recipe: Saved recipes to measure beside the default. May be given several times.
        calib_limit: Most tiles to calibrate on.
        fit_limit: Most tiles to fit the probe on.
        eval_limit: Most tiles to judge on.
        threads: Inference threads; the runtime's own choice when left out.
        seed: Seed of every random choice.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    config = MeasureConfig(
        model=model,
        tiles=tiles,
        evaluation=judged_on(tiles, eval),
        target=Target(target),
        out=file.with_name(f"{file.name}-{Path(model).name}-{target}"),
        calib_limit=calib_limit,
        fit_limit=fit_limit,
        eval_limit=eval_limit,
        threads=threads,
        seed=seed,
    )
    command = ("python tools/quantization_table.py", *sys.argv[1:])
    recipes = [load_recipe(path) for path in recipe or ()]
    print(write_section(file, config, command=" ".join(command), recipes=recipes, screen=console(quiet=quiet)))


def write_section(
    path: Path, config: MeasureConfig, *, command: str, recipes: Sequence[Recipe], screen: "Console"
) -> str:
    """Measure a model's recipes on one target and put the table into a Markdown file.

    Args:
        path: The file; a section of the same model and target is replaced, another is added at the end.
        config: What to measure; a killed run goes on when repeated.
        command: The command line that makes the section again.
        recipes: INT8 recipes beside the target's default and half precision.
        screen: Where progress goes.

    Returns:
        The section.

    Raises:
        RuntimeMissing: The target cannot be measured here.
        InputError: The file holds the beginning of a section without its end, or is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a Markdown file", hint=f"give {path / 'quantization.md'}")
    # Refused now rather than after minutes of measuring.
    for name in re.findall("<!-- (?:begin|end) (.*?) -->", _text(path)):
        replace_section(_text(path), name, "")
    bench = PlanBench(config, screen.print)
    name = f"{bench.model.spec.name} {config.target.value}"
    plans = table_plans(config.target, recipes)
    measured: dict[str, PlanAccuracy] = {}
    for plan in plans:
        measured[plan.name] = bench.measure(plan)
        screen.print(f"{plan.name}: {measured[plan.name].sentence()}")
    section = _section(bench, plans, measured, bench.race(plans), command)
    write_atomic(path, replace_section(_text(path), name, section).encode())
    bench.journal.remove()
    return section


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def table_plans(target: Target, recipes: Sequence[Recipe] = ()) -> list[Plan]:
    """Full precision, half precision, the target's default, and what it is compared with; no two names are equal.

    A recipe that is there already comes once; another of its name gets a number.
    """
    backend = backend_of(target)
    default = backend.recipe
    # What a user gets who calls the quantizer without choosing: no smoothing, largest values, the tiles as they are.
    plain = default.model_copy(
        update={
            "name": f"{target.value}-int8-plain",
            "smooth_alphas": (-1.0,),
            "calibrator": "max",
            "augmented_share": 0.0,
        }
    )
    plans = [Plan(name=REFERENCE, target=target, precision=Precision.FP32)]
    plans += [
        Plan(name=precision.value, target=target, precision=precision) for precision in backend.float_precisions()[:1]
    ]
    # The default keeps its name and the last row.
    own = [recipe for recipe in (plain, *_COMPARED.get(target, ()), *recipes) if recipe != default]
    for recipe in [*dict.fromkeys(own), default]:
        taken = {plan.name for plan in plans} | {default.name}
        name = recipe.name
        if recipe != default and name in taken:
            name = next(f"{name}-{number}" for number in count(2) if f"{name}-{number}" not in taken)
        plans.append(Plan(name=name, target=target, precision=Precision.INT8, recipe=recipe))
    return plans


def replace_section(text: str, name: str, section: str) -> str:
    """Put a section between its markers; at the end where there are none.

    Raises:
        InputError: One marker without the other.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if (begin in text) != (end in text):
        raise InputError(f"the file holds one of {begin} and {end} only", hint="restore or remove that marker")
    block = f"{begin}\n{section}\n{end}"
    if begin in text:
        return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, text, flags=re.DOTALL)
    return f"{text.rstrip()}\n\n{block}\n" if text.strip() else f"{block}\n"


def _section(
    bench: PlanBench,
    plans: Sequence[Plan],
    measured: dict[str, PlanAccuracy],
    speeds: dict[str, PlanSpeed],
    command: str,
) -> str:
    calibration, evaluation = bench.provenances()
    versions = hardware.versions()
    lines = [f"### {bench.model.spec.name} on {bench.config.target.value}", "", _HEAD]
    lines += [_row(plan, measured[plan.name], speeds[plan.name]) for plan in plans]
    lines += [
        "",
        f"{', '.join(f'{name} {versions[name]}' for name in _LIBRARIES[bench.config.target])}; {hardware.cpu().name}, "
        f"{hardware.usable_cores()} cores. "
        f"Scales from {calibration.tiles} tiles of {calibration.name}, judged on {evaluation.tiles} of "
        f"{evaluation.name}; all recipes took turns in one run, intervals are 95 %.",
    ]
    lines += ["", _compared(speeds, bench.backend.recipe.name, [plan.name for plan in plans[1:]])]
    if bench.model.spec.random_weights:
        lines += ["", "Random weights: throughput and agreement mean what they say, a probe on them means nothing."]
    lines += ["", f"    {command}"]
    return "\n".join(lines)


def _compared(speeds: Mapping[str, PlanSpeed], default: str, names: Sequence[str]) -> str:
    """How much faster the default is than each of the others, in the rounds of the table."""
    cells = []
    for name in names:
        if name != default:
            ratio = faster_than(speeds[default], speeds[name])
            cells.append(f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] the throughput of `{name}`")
    return f"In the same rounds `{default}` has {', '.join(cells)}."


def _row(plan: Plan, accuracy: PlanAccuracy, speed: PlanSpeed) -> str:
    ratio, drop, flips = speed.ratio, accuracy.drop_pp, accuracy.flip_percent
    if plan.precision is Precision.FP32:
        score = "" if accuracy.reference_score is None else f"balanced accuracy {accuracy.reference_score:.3f}"
        return f"| full precision | {speed.tiles_per_s:.0f} tiles/s | 1 | 1 | {score} | |"
    cells = (
        plan.name if plan.recipe is None else f"`{plan.name}`",
        f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        f"{accuracy.cosine_median:.5f}",
        f"{accuracy.cosine_p1.estimate:.5f}",
        "" if drop is None else f"{drop.estimate:+.1f} pp [{drop.low:+.1f}, {drop.high:+.1f}]",
        "" if flips is None else f"{flips.estimate:.1f} %",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(run_app(app))
