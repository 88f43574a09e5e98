"""The calibrate step: the tiles that set the scales, chosen, as few as are enough."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.tileset import TileSet
from atlas_edge.export.config import ExportConfig
from atlas_edge.export.steps import Steps
from atlas_edge.export.tile_sets import TileSets
from atlas_edge.spec import Precision
from atlas_edge.tiles import batches, select_records

BATCH = 8
# Without scales to set, tiles serve the check of the graph and the timing only.
_PLAIN_TILES = 64


def calibrate(
    config: ExportConfig, tile_px: int, graph: Path, tile_sets: TileSets, steps: Steps
) -> tuple[TileSets, list[NDArray[np.uint8]], dict[str, Any] | None]:
    """Choose calibration tiles, and decode them.

    Args:
        config: What was asked for.
        tile_px: Side that the encoder takes.
        graph: Full-precision ONNX with a dynamic batch; its activation ranges say how many tiles are enough.
        tile_sets: Where `calibration` holds the tiles that may be used.
        steps: Where notes go.

    Returns:
        The tile sets with what was chosen, its batches, and how it was chosen, for the manifest (None where no scale
        is set).
    """
    source = tile_sets.calibration.source
    if config.precision not in (Precision.INT8, Precision.FP8):
        few = select_records(tile_sets.calibration.records, min(config.calib_limit, _PLAIN_TILES), seed=config.seed)
        pieces = batches(source, few, size=BATCH, tile_px=tile_px, fit=config.tile_fit)
        plain = TileSet(source=source, records=tuple(few), fit=config.tile_fit)
        return replace(tile_sets, calibration=plain), [piece.pixels for piece in pieces], None
    from atlas_edge.quantize.tiles.choose import ENOUGH_TILES, choose_calibration
    from atlas_edge.quantize.tiles.convergence import watch_ranges

    choice = choose_calibration(
        source,
        tile_sets.calibration.records,
        limit=config.calib_limit,
        tile_px=tile_px,
        fit=config.tile_fit,
        seed=config.seed,
    )
    found = watch_ranges(graph, choice.pixels)
    fitted = config.precision is Precision.INT8 and config.int8_recipe.weights == "fitted"
    choice = choice.first(found.enough(fitted=fitted))
    steps.note(
        f"{choice.candidates} candidates, {choice.background} without tissue and {choice.blurred} out of focus left "
        f"out, {len(choice.records)} used, balanced over {', '.join(choice.fields) or 'nothing'}; {found.sentence()}"
    )
    if len(choice.records) < ENOUGH_TILES:
        steps.warn(f"{len(choice.records)} calibration tiles are few: give {ENOUGH_TILES} or more for good scales")
    chosen = TileSet(source=source, records=choice.records, fit=config.tile_fit)
    pixels = [choice.pixels[start : start + BATCH] for start in range(0, len(choice.pixels), BATCH)]
    details = {**choice.as_dict(), "convergence": found.as_dict()}
    return replace(tile_sets, calibration=chosen), pixels, details
