"""`atlas-quantize search` and `table`: plans and recipes of a model, measured on a target."""

import sys
from pathlib import Path
from typing import Literal

from atlas_edge.cli import console, print_json, set_verbosity
from atlas_edge.options import Flag, Json, Quiet, Verbose

TileFit = Literal["exact", "crop", "resize"]


def search(
    model: str,
    tiles: str,
    /,
    *,
    out: Path,
    target: Literal["openvino", "onnx", "tensorrt", "tensorrt-rtx"] = "openvino",
    eval: str | None = None,
    recipe: Path | None = None,
    max_drop: float | None = None,
    max_flips: float | None = None,
    min_cosine: float | None = None,
    minutes: float = 8.0,
    calib_limit: int = 300,
    fit_limit: int = 1500,
    eval_limit: int = 2000,
    tile_fit: TileFit = "exact",
    threads: int | None = None,
    seed: int = 0,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the cheapest precision that passes the gate on the target's runtime. A killed search goes on when repeated.

    A third of the slides that judge chooses, the others confirm what was chosen.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name.
        tiles: Tiles that calibrate and fit the probe; the train split where there are splits.
        out: Folder for plan.json (for atlas-export --plan), search.json, search.md and pareto.svg.
        target: Whose runtime measures.
        eval: Tiles that judge; the test split of TILES when left out.
        recipe: INT8 recipe to start from; the target's default when left out.
        max_drop: Budget on the upper end of the drop's 95 % interval, percentage points; 2.5 when no budget is given.
        max_flips: Budget on the upper end of the share of changed predictions, per cent.
        min_cosine: Least 1st percentile of the cosine, at the lower end of its interval.
        minutes: Start no further plan that would not fit into this time.
        calib_limit: Most tiles to calibrate on.
        fit_limit: Most tiles to fit the probe on.
        eval_limit: Most tiles to judge on.
        tile_fit: What to do with tiles of another size than the encoder's.
        threads: Inference threads; the runtime's own choice when left out.
        seed: Seed of every random choice.
        overwrite: Replace an existing folder.
        dry_run: Check the arguments, measure and write nothing.
        json: Print everything that was measured as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    from atlas_edge.quantize.commands.search import check_found, find_plan, search_config

    set_verbosity(quiet=quiet, verbose=verbose)
    config = search_config(
        model=model,
        tiles=tiles,
        evaluation=eval,
        target=target,
        recipe=recipe,
        budget={"max_drop_pp": max_drop, "max_flip_percent": max_flips, "min_cosine": min_cosine},
        out=out,
        minutes=minutes,
        calib_limit=calib_limit,
        fit_limit=fit_limit,
        eval_limit=eval_limit,
        tile_fit=tile_fit,
        threads=threads,
        seed=seed,
    )
    shown = find_plan(config, console(quiet=quiet), overwrite=overwrite, dry_run=dry_run)
    if json:
        print_json(shown)
    check_found(shown)


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
    from atlas_edge.quantize.commands.search import judged_on
    from atlas_edge.quantize.recipe import load_recipe
    from atlas_edge.quantize.search.bench import MeasureConfig
    from atlas_edge.quantize.table import write_section
    from atlas_edge.spec import Target

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
    command = ("atlas-quantize", *sys.argv[1:])
    recipes = [load_recipe(path) for path in recipe or ()]
    print(write_section(file, config, command=" ".join(command), recipes=recipes, screen=console(quiet=quiet)))
