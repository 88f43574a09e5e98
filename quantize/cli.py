"""`atlas-quantize`: which tiles calibrate, which layers are sensitive, which precision plan wins."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from atlas_edge.cli import console, make_app, print_json, run_app, set_verbosity

HELP = """Choose calibration tiles and quantization recipes, and find the cheapest precision that keeps the accuracy.

Example:

    atlas-quantize calibration my-student tiles --contact-sheet chosen.png
"""

app = make_app("atlas-quantize", HELP)

Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]
TileFit = Literal["exact", "crop", "resize"]


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
    """Show which tiles would calibrate a model, why, and how many are enough.

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
    from atlas_edge.quantize.calibration_command import show_calibration

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
    calibrator: Literal["max", "percentile", "mse"] | None = None,
    attention: bool | None = None,
    patch_embed: bool | None = None,
    bias_correction: bool | None = None,
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
        attention: Quantize the two matrix products of attention.
        patch_embed: Quantize the patch embedding.
        bias_correction: Correct the mean shift that rounded weights cause.
        exclude: Layers to leave in floating point, such as blocks.3.mlp.fc2; * matches anything. May be given several
            times.
        overwrite: Replace an existing file.
        dry_run: Write nothing.
        json: Print as JSON on stdout.
        quiet: Print errors only.
    """
    from atlas_edge.quantize.recipe_command import show_recipe

    set_verbosity(quiet=quiet, verbose=False)
    changes = {
        "name": rename,
        "smooth_alphas": None if smooth_alpha is None else tuple(smooth_alpha),
        "calibrator": calibrator,
        "attention": attention,
        "patch_embed": patch_embed,
        "bias_correction": bias_correction,
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
    from atlas_edge.quantize.sensitivity_command import SensitivityConfig, show_sensitivity
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


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))
