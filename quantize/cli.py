"""`atlas-quantize`: which tiles calibrate, which layers are sensitive, which precision plan wins."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from atlas_edge.cli import make_app, print_json, run_app
from atlas_edge.options import Flag, Output
from atlas_edge.quantize.options import (
    CalibrationOptions,
    FinetuneOptions,
    Limits,
    RecipeChanges,
    SearchBudget,
    SensitivityOptions,
)
from atlas_edge.targets import Target

HELP = """Choose calibration tiles and quantization recipes, and find the cheapest precision that keeps the accuracy.

Example, the tiles that would calibrate:

    atlas-quantize calibration my-student tiles --contact-sheet chosen.png
"""

app = make_app("atlas-quantize", HELP)


@app.command
def calibration(
    model: str,
    tiles: str,
    /,
    *,
    options: CalibrationOptions = CalibrationOptions(),
    output: Output = Output(),
) -> None:
    """Show which tiles calibrate a model in INT8, why, and how many are enough.

    They are those of atlas-export with the same TILES, seed, limit and default recipe.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name.
        tiles: A folder, pack, parquet or HDF5; its train split where it has splits.
        options: Which tiles are chosen.
        output: What is printed.
    """
    from atlas_edge.quantize.commands.calibration import show_calibration

    shown = show_calibration(model, tiles, options, output.screen())
    if output.json:
        print_json(shown)


@app.command
def recipe(
    name: str | None = None,
    /,
    *,
    out: Path | None = None,
    changes: RecipeChanges = RecipeChanges(),
    overwrite: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Show the default INT8 recipe of every target, or one recipe, changed and saved.

    Args:
        name: A target (openvino, onnx, tensorrt, tensorrt-rtx) for its default, or a saved recipe; all defaults when
            left out.
        out: Save the recipe to this file, for atlas-export --recipe.
        changes: What becomes of it.
        overwrite: Replace an existing file.
        dry_run: Write nothing.
        output: What is printed.
    """
    from atlas_edge.quantize.commands.recipe import show_recipe

    given = {key: value for key, value in vars(changes).items() if value is not None}
    shown = show_recipe(name, given, out=out, overwrite=overwrite, dry_run=dry_run, screen=output.screen())
    if output.json:
        print_json(shown)


@app.command
def sensitivity(
    model: str,
    tiles: str,
    /,
    *,
    options: SensitivityOptions = SensitivityOptions(),
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Measure each layer: the embedding's error with only it in INT8, and with all but it.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name.
        tiles: A folder, pack, parquet or HDF5; its train split where it has splits.
        options: What is measured.
        dry_run: Check the arguments, measure and write nothing.
        output: What is printed.
    """
    from atlas_edge.quantize.commands.sensitivity import show_sensitivity

    shown = show_sensitivity(model, tiles, options, output.screen(), dry_run=dry_run)
    if output.json:
        print_json(shown)


@app.command
def search(
    model: str,
    tiles: str,
    /,
    *,
    out: Path,
    target: Target = Target.OPENVINO,
    eval: str | None = None,
    recipe: Path | None = None,
    budget: SearchBudget = SearchBudget(),
    minutes: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 8.0,
    merge_tokens: Flag = False,
    limits: Limits = Limits(),
    overwrite: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
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
        budget: What a plan may cost.
        minutes: Start no further plan that would not fit into this time.
        merge_tokens: Where INT8 passes, try networks that merge tokens, too: faster, and a little further from the
            model's embeddings.
        limits: On how many tiles plans are measured, and how.
        overwrite: Replace an existing folder.
        dry_run: Check the arguments, measure and write nothing.
        output: What is printed.
    """
    from atlas_edge.quantize.commands.search import check_found, find_plan, search_config

    config = search_config(
        limits,
        model=model,
        tiles=tiles,
        evaluation=eval,
        target=target,
        recipe=recipe,
        budget=budget,
        out=out,
        minutes=minutes,
        merge_tokens=merge_tokens,
    )
    shown = find_plan(config, output.screen(), overwrite=overwrite, dry_run=dry_run)
    if output.json:
        print_json(shown)
    check_found(shown)


@app.command
def finetune(
    model: str,
    tiles: str,
    out: Path,
    /,
    *,
    options: FinetuneOptions = FinetuneOptions(),
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Let a model teach its quantized self on unlabelled tiles, for what calibration alone cannot hold.

    A killed run goes on when repeated.

    Args:
        model: Model folder.
        tiles: A folder, pack, parquet or HDF5; labels are not read.
        out: Folder to write: a model that atlas-export takes, with its quantized ONNX.
        options: How it is taught.
        dry_run: Check the arguments, train nothing.
        output: What is printed.
    """
    from atlas_edge.quantize.commands.finetune import check_distillation, distill_model
    from atlas_edge.quantize.finetune.qad import QadOptions
    from atlas_edge.quantize.recipe import load_recipe

    screen = output.screen()
    recipe = None if options.recipe is None else load_recipe(options.recipe)
    training = QadOptions(
        steps=options.steps,
        weight_lr=options.lr,
        other_lr=options.lr,
        range_lr=options.range_lr,
        seed=options.seed,
    )
    if dry_run:
        check_distillation(model, out, recipe, training, weight_bits=options.weight_bits, overwrite=options.overwrite)
        screen.print(f"would train {options.steps} steps and write {out}; nothing was written")
        return
    report = distill_model(
        model,
        tiles,
        out,
        recipe=recipe,
        options=training,
        weight_bits=options.weight_bits,
        limit=options.limit,
        fit=options.tile_fit,
        overwrite=options.overwrite,
        progress=lambda step, loss: (
            screen.print(f"step {step} of {options.steps}: loss {loss:.4f}") if step % 10 == 0 else None
        ),
    )
    screen.print(
        f"{out}: mean 1 - cosine on held-out tiles {report['error_before']:.2e} before, {report['error_after']:.2e} "
        f"after; the weights from {report['kept']} training are kept"
    )
    if output.json:
        print_json(report)


app.command(finetune, name="distill", show=False)  # an older name, for scripts that hold it


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))
