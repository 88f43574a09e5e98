"""`atlas-quantize search`: precision plans of a model, measured on a target."""

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
