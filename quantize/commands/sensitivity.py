"""`atlas-quantize sensitivity`: which layers cost accuracy in INT8."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_edge.errors import UsageError
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.options import SensitivityOptions
from atlas_edge.quantize.recipe import check_merges_nothing, load_recipe
from atlas_edge.system.atomic import atomic_folder, check_vacant
from atlas_edge.tiles import open_tiles

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_edge.quantize.sensitivity.measure import Sensitivity


_REPORT = "sensitivity.json"


def show_sensitivity(
    name: str, tiles: str, options: SensitivityOptions, screen: "Console", *, dry_run: bool
) -> dict[str, Any]:
    """Measure, print a table, write JSON and SVG where asked, and return the figures.

    Raises:
        UsageError: No tile to measure on, a folder that is there already, or a recipe that merges tokens.
        InputError: A model, tile or recipe that cannot be read.
    """
    backend = backend_of(options.target)
    if options.out is not None:
        check_vacant(options.out, marks=(_REPORT,), overwrite=options.overwrite)
    source = open_tiles(tiles, role="calibration")
    recipe = backend.recipe if options.recipe is None else load_recipe(options.recipe)
    check_merges_nothing(recipe, "what is measured layer by layer")
    if dry_run:
        screen.print(f"would measure {name} by recipe {recipe.name} on tiles of {source.name}")
        return {"recipe": recipe.model_dump(mode="json")}
    from atlas_edge.models.load import load_model
    from atlas_edge.quantize.sensitivity.measure import measure_sensitivity, plot_sensitivity
    from atlas_edge.quantize.sensitivity.toggles import ToggledEncoder
    from atlas_edge.quantize.tiles.augmentation import with_augmented
    from atlas_edge.quantize.tiles.choose import choose_calibration

    model = load_model(name, seed=options.seed)
    choice = choose_calibration(
        source,
        limit=options.calib_limit + options.count,
        tile_px=model.spec.tile_px,
        fit=options.tile_fit,
        seed=options.seed,
    )
    if len(choice.pixels) <= options.count:
        raise UsageError(
            f"{source.name} has {len(choice.pixels)} usable tiles, {options.count} measure and the others set ranges",
            hint="use a smaller --count, or more tiles",
        )
    measured, ranges = choice.pixels[: options.count], choice.pixels[options.count :]
    ranges = np.concatenate(with_augmented([ranges], recipe.augmented_share))
    encoder = ToggledEncoder(model.module, ranges, recipe, symmetric=backend.symmetric)
    found = measure_sensitivity(encoder, measured, recipe=recipe.name, without=options.without)
    _print(found, screen)
    if options.out is not None:
        with atomic_folder(options.out, marks=(_REPORT,), overwrite=options.overwrite) as folder:
            (folder / _REPORT).write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")
            plot_sensitivity(found, folder / "sensitivity.svg")
        screen.print(f"written: {options.out}")
    return found.as_dict()


def _print(found: "Sensitivity", screen: "Console") -> None:
    from rich.table import Table

    table = Table("layer", "only this in INT8", "all but this", "share of the work")
    for entry in sorted(found.layers, key=lambda entry: -entry.alone):
        rest = "" if entry.without is None else f"{entry.without:.2e}"
        table.add_row(entry.layer, f"{entry.alone:.2e}", rest, f"{entry.work:.1%}")
    screen.print(table)
    screen.print(
        f"1 - cosine, mean of {found.tiles} tiles; all layers in INT8 ({found.recipe}): {found.everything:.2e}"
    )
