"""Embeddings as SpatialData in zarr: tiles as shapes, their embeddings as a table; what LazySlide opens.

Written as spatialdata 0.7 writes it (container 0.2, shapes 0.3, tables 0.2, zarr format 3), without that library:
https://spatialdata.scverse.org/en/stable/design_doc.html. Names are those of wsidata, which LazySlide builds on: the
shapes `tiles`, the table `ENCODER_tiles`, the attribute `tile_spec`.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.output.attributes import Attributes
from atlas_edge.embed.output.rows import ROWS, kept_rows, of_skipped, of_slide, of_tiles
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.embed.resume.plan import SPATIALDATA_ABOUT
from atlas_edge.slides import TileGrid

_TILES = "tiles"
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
_STRING = {"encoding-type": "string", "encoding-version": "0.2.0"}
_STRINGS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
_CATEGORICAL = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
_LINKS = {"region": _TILES, "region_key": "library_id", "instance_key": "tile_id"}
# A polygon of five points in well-known binary, little-endian.
_BOX = np.dtype(
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("corners", "<f8", (5, 2))], align=False
)


def write_spatialdata(
    path: Path, journal: Journal, keep: NDArray[np.bool_], grid: TileGrid, attributes: Attributes
) -> None:
    """Write readable tiles.

    Args:
        path: Folder to write.
        journal: Holds embeddings and measures.
        keep: Tiles to write.
        grid: Where they are, pixels of level 0.
        attributes: See `slide_attributes`.
    """
    import zarr

    places = {"unreadable_coords": grid.coords[~keep], **of_skipped(keep, grid)}
    listed = {name: values.tolist() for name, values in places.items()}
    about: dict[str, Any] = json.loads(json.dumps({**attributes, **listed}))
    root = zarr.open_group(
        path,
        mode="w",
        attributes={
            "spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": "0.7.3"},
            "tile_spec": {_TILES: _tile_spec(grid)},
            SPATIALDATA_ABOUT: about,
        },
    )
    coords = grid.coords[keep]
    measured = of_tiles(journal, keep, grid)
    shapes = root.create_group("shapes").create_group(_TILES, attributes=_shapes_attributes())
    _write_shapes(path / shapes.path / "shapes.parquet", coords, grid, measured)
    name = re.sub(r"[^\w.-]", "_", f"{attributes['encoder']}_{_TILES}", flags=re.ASCII).lstrip("_.")
    table = root.create_group("tables").create_group(
        name,
        attributes={
            "encoding-type": "anndata", "encoding-version": "0.1.0",
            "spatialdata-encoding-type": "ngff:regions_table", "version": "0.2", **_LINKS,
        },
    )  # fmt: skip
    features = table.create_array(
        "X",
        shape=(len(coords), attributes["embed_dim"]),
        chunks=(min(ROWS, max(len(coords), 1)), attributes["embed_dim"]),
        dtype="<f4",
        attributes=_ARRAY,
    )
    for start, _, rows in kept_rows(journal, keep, grid):
        features[start : start + len(rows)] = rows
    _write_obs(table, len(coords), measured)
    _strings(_frame(table, "var", []), "_index", [str(number) for number in range(attributes["embed_dim"])])
    for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        table.create_group(name, attributes=_DICT)
    _array(table["obsm"], "spatial", coords + np.array([grid.size_x, grid.size_y]) / 2)
    for name, (values, _) in of_slide(journal, keep, grid).items():
        _array(table["uns"], name, values)
    links = table["uns"].create_group("spatialdata_attrs", attributes=_DICT)
    for name, value in _LINKS.items():
        links.create_array(name, data=np.array(value, dtype=np.dtypes.StringDType()), attributes=_STRING)


def _tile_spec(grid: TileGrid) -> dict[str, Any]:
    """As wsidata's `TileSpec` counts: pixels of the tile, of the level that is read, of level 0."""
    side, step = grid.tile_px, grid.tile_px - grid.overlap
    return {
        "height": side, "width": side, "stride_height": step, "stride_width": step, "mpp": grid.mpp,
        "ops_level": grid.level, "ops_downsample": grid.scale_x, "base_level": 0,
        "base_downsample": grid.size_x / side, "tissue_name": None,
    }  # fmt: skip


def _shapes_attributes() -> dict[str, Any]:
    axes = [{"name": name, "type": "space", "unit": "unit"} for name in "xy"]
    return {
        "encoding-type": "ngff:shapes",
        "axes": ["x", "y"],
        "coordinateTransformations": [
            {"type": "identity", "input": {"name": "xy", "axes": axes}, "output": {"name": "global", "axes": axes}}
        ],
        "spatialdata_attrs": {"version": "0.3"},
    }


def _write_shapes(
    path: Path, coords: NDArray[np.int64], grid: TileGrid, measured: dict[str, NDArray[np.float32]]
) -> None:
    """Write tiles as GeoParquet 1.1: https://geoparquet.org/releases/v1.1.0/."""
    import pyarrow
    import pyarrow.parquet

    boxes = np.zeros(len(coords), dtype=_BOX)
    boxes["order"], boxes["kind"], boxes["rings"], boxes["points"] = 1, 3, 1, 5
    corners = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0]]) * (grid.size_x, grid.size_y)
    boxes["corners"] = coords[:, None] + corners
    columns = {
        "tile_id": pyarrow.array(np.arange(len(coords))),
        "x": pyarrow.array(coords[:, 0].copy()),
        "y": pyarrow.array(coords[:, 1].copy()),
        **{name: pyarrow.array(values) for name, values in measured.items()},
        "geometry": pyarrow.array([box.tobytes() for box in boxes], type=pyarrow.binary()),
    }
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
    }
    table = pyarrow.table(columns).replace_schema_metadata({"geo": json.dumps(geo)})
    pyarrow.parquet.write_table(table, path)


def _write_obs(table: Any, tiles: int, measured: dict[str, NDArray[np.float32]]) -> None:
    obs = _frame(table, "obs", ["tile_id", "library_id", *measured])
    _strings(obs, "_index", [str(number) for number in range(tiles)])
    _array(obs, "tile_id", np.arange(tiles))
    region = obs.create_group("library_id", attributes=_CATEGORICAL)
    _strings(region, "categories", [_TILES])
    _array(region, "codes", np.zeros(tiles, dtype=np.int8))
    for name, values in measured.items():
        _array(obs, name, values)


def _frame(table: Any, name: str, columns: list[str]) -> Any:
    kind = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}
    return table.create_group(name, attributes={**kind, "_index": "_index", "column-order": columns})


def _array(group: Any, name: str, values: NDArray[Any]) -> None:
    group.create_array(name, data=values, attributes=_ARRAY)


def _strings(group: Any, name: str, values: list[str]) -> None:
    group.create_array(name, data=np.array(values, dtype=np.dtypes.StringDType()), attributes=_STRINGS)
