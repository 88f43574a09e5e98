"""Tissue and tiles as GeoJSON (RFC 7946), with the properties that QuPath reads."""

import json
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.output.rows import of_skipped
from atlas_edge.slides import Slide, TileGrid, TissueMask
from atlas_edge.system.atomic import write_atomic

Ring = list[list[float]]
_TISSUE, _UNREADABLE, _SKIPPED = [0, 110, 60], [220, 30, 30], [150, 150, 150]


def write_geojson(
    out: Path,
    slide: Slide,
    mask: TissueMask | None,
    grid: TileGrid,
    unreadable: Collection[int],
    focus: NDArray[np.float32] | None = None,
) -> Path:
    """Write `NAME.geojson` beside an output: drop it on the slide in QuPath.

    Tissue is one annotation. A tile is a tile object whose measurement `row` says which row of `features` is its
    embedding, beside its share of tissue and its focus; one that could not be read has the class `Unreadable` and no
    row; one that was not to be embedded has the class `Not embedded` and, as `stands_in_row`, the row of the one that
    stands for it. Coordinates are pixels of level 0, from the corner of what was scanned where the slide says one, as
    QuPath counts.

    Args:
        out: Output.
        slide: Open.
        mask: Where tissue is; None where nobody looked.
        grid: Its tiles.
        unreadable: Indices of tiles that the output leaves out.
        focus: `(N,)`; see `focus_of`.
    """
    left, top = (slide.bounds or (0, 0))[:2]
    features = [] if mask is None else list(_tissue(mask, left, top))
    measured = {"tissue_share": grid.tissue_share, "focus": focus}
    row = 0
    for index, (x, y) in enumerate(grid.coords.tolist()):
        known = {name: round(float(values[index]), 4) for name, values in measured.items() if values is not None}
        properties: dict[str, Any] = {"objectType": "tile", "measurements": {"row": row, **known}}
        if index in unreadable:
            properties = {"objectType": "tile", "classification": {"name": "Unreadable", "color": _UNREADABLE}}
        else:
            row += 1
        features.append(_feature("Polygon", [_box(x - left, y - top, grid)], properties))
    if grid.skipped is not None:
        kept = np.array([index not in unreadable for index in range(len(grid.coords))])
        coords, rows = of_skipped(kept, grid).values()
        for (x, y), stands_in in zip(coords.tolist(), rows.tolist(), strict=True):
            properties = {
                "objectType": "tile",
                "classification": {"name": "Not embedded", "color": _SKIPPED},
                "measurements": {"stands_in_row": stands_in},
            }
            features.append(_feature("Polygon", [_box(x - left, y - top, grid)], properties))
    path = out.with_suffix(".geojson")
    collection = {"type": "FeatureCollection", "features": features}
    write_atomic(path, json.dumps(collection, separators=(",", ":")).encode())
    return path


def _feature(kind: str, coordinates: Any, properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def _box(x: float, y: float, grid: TileGrid) -> Ring:
    right, bottom = round(x + grid.size_x, 2), round(y + grid.size_y, 2)
    return [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]


def _tissue(mask: TissueMask, left: int, top: int) -> Iterator[dict[str, Any]]:
    import contourpy

    # A frame of glass closes what reaches the rim.
    framed = np.pad(mask.tissue.astype(np.float32), 1)
    generator = contourpy.contour_generator(z=framed, fill_type=contourpy.FillType.OuterOffset)
    # Its type is that of all fill types together.
    filled: Any = generator.filled(0.5, 2)
    points, offsets = filled
    polygons = []
    for ring_points, ring_offsets in zip(points, offsets, strict=True):
        # Between the middles of two mask pixels: half a pixel beside where the frame counts from.
        level0 = (ring_points - 0.5) * (mask.pixel_x, mask.pixel_y) - (left, top)
        polygons.append([_ring(level0[a:b]) for a, b in pairwise(ring_offsets)])
    if polygons:
        about = {"objectType": "annotation", "classification": {"name": "Tissue", "color": _TISSUE}}
        yield _feature("MultiPolygon", polygons, about)


def _ring(points: NDArray[np.float64]) -> Ring:
    return [[float(x), float(y)] for x, y in np.round(points, 2)]
