"""`atlas-quantize`: which tiles calibrate, which layers are sensitive, which precision plan wins."""

from pathlib import Path
from typing import Literal

from atlas_edge.cli import console, make_app, print_json, run_app, set_verbosity
from atlas_edge.options import Flag, Json, Quiet, Verbose
from atlas_edge.quantize.commands.measuring import TileFit, search

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
    eval: str | None = None,
    limit: int = 300,
    contact_sheet: Path | None = None,
    tile_fit: TileFit = "exact",
    seed: int = 0,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show which tiles calibrate a model in INT8, why, and how many are enough.

    They are those of atlas-export with the same TILES, seed, limit and default recipe.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name.
        tiles: A folder, pack, parquet or HDF5; its train split where it has splits.
        eval: Tiles that will judge; the test split of TILES where it has one. Slides in both are an error.
        limit: Most tiles to choose.
        contact_sheet: Write the chosen tiles to this PNG.
        tile_fit: What to do with tiles of another size than the encoder's.
        seed: Another seed chooses other tiles.
        dry_run: Choose, but run no model and write nothing.
        json: Print the choice as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    from atlas_edge.quantize.commands.calibration import show_calibration

    set_verbosity(quiet=quiet, verbose=verbose)
    shown = show_calibration(
        model,
        tiles,
        evaluation=eval,
        limit=limit,
        contact_sheet=contact_sheet,
        fit=tile_fit,
        seed=seed,
        dry_run=dry_run,
        screen=console(quiet=quiet),
    )
    if json:
        print_json(shown)


@app.command
def recipe(
    name: str | None = None,
    /,
    *,
    out: Path | None = None,
    rename: str | None = None,
    smooth_alpha: list[float] | None = None,
    calibrator: Literal["max", "percentile", "mse", "entropy"] | None = None,
    weights: Literal["nearest", "fitted"] | None = None,
    quantizer: Literal["layers", "nncf"] | None = None,
    attention: bool | None = None,
    patch_embed: bool | None = None,
    bias_correction: bool | None = None,
    augmented_share: float | None = None,
    exclude: list[str] | None = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the default INT8 recipe of every target, or one recipe, changed and saved.

    Args:
        name: A target (openvino, onnx, tensorrt, tensorrt-rtx) for its default, or a saved recipe; all defaults when
            left out.
        out: Save the recipe to this file, for atlas-export --recipe.
        rename: What reports call it.
        smooth_alpha: SmoothQuant strengths to choose from; -1 turns it off. May be given several times.
        calibrator: How the range of an activation is set.
        weights: Round weights to the nearest, or fit them to what they read.
        quantizer: OpenVINO only: layer by layer, or NNCF.
        attention: Quantize the two matrix products of attention.
        patch_embed: Quantize the patch embedding.
        bias_correction: Correct the mean shift that rounded weights cause.
        augmented_share: Share of the tiles that set ranges which are copies with bare glass or brown stain.
        exclude: Layers to leave in floating point, such as blocks.3.mlp.fc2; * matches anything. May be given several
            times.
        overwrite: Replace an existing file.
        dry_run: Write nothing.
        json: Print as JSON on stdout.
        quiet: Print errors only.
    """
    from atlas_edge.quantize.commands.recipe import show_recipe

    set_verbosity(quiet=quiet, verbose=False)
    changes = {
        "name": rename,
        "smooth_alphas": None if smooth_alpha is None else tuple(smooth_alpha),
        "calibrator": calibrator,
        "weights": weights,
        "quantizer": quantizer,
        "attention": attention,
        "patch_embed": patch_embed,
        "bias_correction": bias_correction,
        "augmented_share": augmented_share,
        "exclude": None if exclude is None else tuple(exclude),
    }
    given = {key: value for key, value in changes.items() if value is not None}
    shown = show_recipe(name, given, out=out, overwrite=overwrite, dry_run=dry_run, screen=console(quiet=quiet))
    if json:
        print_json(shown)


@app.command
def sensitivity(
    model: str,
    tiles: str,
    /,
    *,
    target: Literal["openvino", "onnx", "tensorrt", "tensorrt-rtx"] = "openvino",
    recipe: Path | None = None,
    out: Path | None = None,
    count: int = 16,
    calib_limit: int = 64,
    without: bool = True,
    tile_fit: TileFit = "exact",
    seed: int = 0,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure each layer: the embedding's error with only it in INT8, and with all but it.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name.
        tiles: A folder, pack, parquet or HDF5; its train split where it has splits.
        target: Whose rounding is imitated: activations from -max to max, or (openvino) between their extremes.
        recipe: Saved recipe; the target's default when left out.
        out: Folder for sensitivity.json and sensitivity.svg.
        count: Tiles that the errors are means over.
        calib_limit: Other tiles, which set the ranges.
        without: Measure all but one, too, for twice the time.
        tile_fit: What to do with tiles of another size than the encoder's.
        seed: Another seed chooses other tiles.
        overwrite: Replace an existing folder.
        dry_run: Check the arguments, measure and write nothing.
        json: Print the errors as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    from atlas_edge.quantize.commands.sensitivity import SensitivityConfig, show_sensitivity
    from atlas_edge.spec import Target

    set_verbosity(quiet=quiet, verbose=verbose)
    config = SensitivityConfig(
        model=model,
        tiles=tiles,
        target=Target(target),
        recipe=recipe,
        out=out,
        count=count,
        calib_limit=calib_limit,
        without=without,
        tile_fit=tile_fit,
        seed=seed,
        overwrite=overwrite,
    )
    shown = show_sensitivity(config, console(quiet=quiet), dry_run=dry_run)
    if json:
        print_json(shown)


app.command(search)


@app.command
def distill(
    model: str,
    tiles: str,
    out: Path,
    /,
    *,
    recipe: Path | None = None,
    weight_bits: int = 8,
    steps: int = 120,
    lr: float = 1e-5,
    range_lr: float = 0.02,
    limit: int = 300,
    tile_fit: TileFit = "exact",
    seed: int = 0,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Let a model teach its quantized self on unlabelled tiles, for what calibration alone cannot hold.

    A killed run goes on when repeated.

    Args:
        model: Model folder.
        tiles: A folder, pack, parquet or HDF5; labels are not read.
        out: Folder to write: a model that atlas-export takes, with its quantized ONNX.
        recipe: Saved recipe to begin with; weights of --weight-bits when left out, fitted where the network allows it.
        weight_bits: Bits of a weight where no recipe is given.
        steps: Training steps of 8 tiles.
        lr: Largest change of a weight, norm or bias in a step, as a share of the size of its channel.
        range_lr: The same of the range of a layer's input; 0 trains no ranges.
        limit: Most tiles to train on.
        tile_fit: What to do with tiles of another size than the encoder's.
        seed: Another seed trains in another order.
        overwrite: Replace an existing OUT.
        dry_run: Check the arguments, train nothing.
        json: Print the report as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    from atlas_edge.quantize.commands.finetune import check_distillation, distill_model
    from atlas_edge.quantize.finetune.qad import QadOptions
    from atlas_edge.quantize.recipe import load_recipe

    set_verbosity(quiet=quiet, verbose=verbose)
    screen = console(quiet=quiet)
    chosen = None if recipe is None else load_recipe(recipe)
    options = QadOptions(steps=steps, weight_lr=lr, other_lr=lr, range_lr=range_lr, seed=seed)
    if dry_run:
        check_distillation(model, out, chosen, options, weight_bits=weight_bits, overwrite=overwrite)
        screen.print(f"would train {steps} steps and write {out}; nothing was written")
        return
    report = distill_model(
        model,
        tiles,
        out,
        recipe=chosen,
        options=options,
        weight_bits=weight_bits,
        limit=limit,
        fit=tile_fit,
        overwrite=overwrite,
        progress=lambda step, loss: (
            screen.print(f"step {step} of {steps}: loss {loss:.4f}") if step % 10 == 0 else None
        ),
    )
    screen.print(
        f"{out}: mean 1 - cosine on held-out tiles {report['error_before']:.2e} before, {report['error_after']:.2e} "
        f"after; the weights from {report['kept']} training are kept"
    )
    if json:
        print_json(report)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))
