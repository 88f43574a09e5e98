"""`atlas-quantize calibration`: choose, watch the scales, and show."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.quantize.options import CalibrationOptions
from atlas_edge.quantize.tiles.choose import CalibrationChoice, calibration_pool, choose_calibration
from atlas_edge.quantize.tiles.convergence import Convergence, watch_ranges
from atlas_edge.tiles import TileRecord, open_tiles, provenance, without_split
from atlas_edge.tiles.overlap import check_disjoint, in_first_half

if TYPE_CHECKING:
    from rich.console import Console


def show_calibration(
    model: str,
    tiles: str,
    options: CalibrationOptions,
    screen: "Console",
) -> dict[str, Any]:
    """Choose the calibration tiles of an INT8 export by the default recipe, print how, and return the same as data.

    Raises:
        InputError: Slides are in both sets, or no tile has tissue.
        UsageError: No such model or split.
    """
    from atlas_edge.models.load import load_model

    source = open_tiles(tiles, role="calibration")
    judged = _evaluation(tiles, options.eval, has_splits=bool(source.splits()))
    if judged is not None:
        check_disjoint((source, list(source.records())), (judged, list(judged.records())))
    loaded = load_model(model)
    records: Iterable[TileRecord] = source.records()
    if judged is None and source.split is None:
        # Without splits, half of the slides judge.
        fitted = in_first_half(source.records(), seed=options.seed)
        records = filter(fitted, records)
    pool = calibration_pool(records, limit=options.limit, seed=options.seed)
    choice = choose_calibration(
        source, pool, limit=options.limit, tile_px=loaded.spec.tile_px, fit=options.tile_fit, seed=options.seed
    )
    _print_choice(choice, source.name, screen)
    found: Convergence | None = None
    if not options.dry_run:
        found = _watch(loaded, choice)
        choice = choice.first(found.enough(fitted=True))
        screen.print(found.sentence())
        if options.contact_sheet is not None:
            from atlas_edge.quantize.tiles.contact_sheet import write_contact_sheet

            count = write_contact_sheet(
                choice, options.contact_sheet, title=f"{len(choice.records)} tiles of {source.name}"
            )
            screen.print(f"{count} tiles are shown in {options.contact_sheet}")
    return {
        "provenance": provenance(source, choice.records).model_dump(mode="json"),
        "disjoint_from": None if judged is None else judged.name + (f"@{judged.split}" if judged.split else ""),
        **choice.as_dict(),
        "convergence": None if found is None else found.as_dict(),
        "ids": [record.id for record in choice.records],
    }


def _evaluation(tiles: str, evaluation: str | None, *, has_splits: bool) -> Any:
    if evaluation is None and not has_splits:
        return None
    return open_tiles(evaluation or without_split(tiles), role="evaluation")


def _watch(loaded: Any, choice: CalibrationChoice) -> Convergence:
    from atlas_edge.models.graph import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        graph = export_onnx(loaded.module, loaded.spec, Path(folder) / "reference.onnx")
        return watch_ranges(graph, choice.pixels)


def _print_choice(choice: CalibrationChoice, name: str, screen: "Console") -> None:
    from rich.table import Table

    screen.print(
        f"{name}: {choice.candidates} candidates, {choice.background} without tissue and {choice.blurred} out of focus "
        f"left out, {len(choice.records)} kept"
    )
    table = Table(" / ".join(choice.fields) or "stratum", "tiles", "tissue", "haematoxylin", "eosin")
    for stratum, count in sorted(Counter(choice.strata).items()):
        looks = [look for look, own in zip(choice.looks, choice.strata, strict=True) if own == stratum]
        tissue, blue, pink = (
            sum(values) / count
            for values in zip(*((look.tissue, look.colour[0], look.colour[1]) for look in looks), strict=True)
        )
        table.add_row(" / ".join(stratum) or "all", str(count), f"{tissue:.0%}", f"{blue:.2f}", f"{pink:.2f}")
    screen.print(table)
