"""Embeddings as AnnData in HDF5, `.h5ad`: what scanpy, squidpy and SpatialData work on, one observation a tile.

Written as https://anndata.readthedocs.io/en/stable/fileformat-prose.html describes it (0.1.0), without that library.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.output.attributes import Attributes
from atlas_edge.embed.output.rows import kept_rows, of_skipped, of_slide, of_tiles
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.slides import TileGrid

_VERSION = "0.2.0"
_INDEX = "_index"


def write_anndata(
    path: Path, journal: Journal, keep: NDArray[np.bool_], grid: TileGrid, attributes: Attributes
) -> None:
    """Write readable tiles.

    `X` holds embeddings, `obs` what is known of each tile (its name `x_y` and corner in pixels of level 0, measures),
    `obsm["spatial"]` the middles of tiles, where squidpy draws them, and `uns` the slide's embeddings and attributes.

    Args:
        path: To write.
        journal: Holds embeddings and measures.
        keep: Tiles to write.
        grid: Where they are.
        attributes: See `slide_attributes`.
    """
    import h5py

    coords = grid.coords[keep]
    columns: dict[str, NDArray[Any]] = {"x": coords[:, 0], "y": coords[:, 1], **of_tiles(journal, keep, grid)}
    with h5py.File(path, "w") as file:
        # On the file itself, too: there it is looked for when the run goes on.
        file.attrs.update({**attributes, **_kind("anndata", "0.1.0")})
        _frame(file, "obs", [f"{x}_{y}" for x, y in coords.tolist()], columns)
        _frame(file, "var", [str(number) for number in range(attributes["embed_dim"])], {})
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            file.create_group(name).attrs.update(_kind("dict", "0.1.0"))
        _array(file["obsm"], "spatial", coords + np.array([grid.size_x, grid.size_y]) / 2)
        for name, places in {"unreadable_coords": grid.coords[~keep], **of_skipped(keep, grid)}.items():
            _array(file["uns"], name, places)
        for name, (values, _) in of_slide(journal, keep, grid).items():
            _array(file["uns"], name, values)
        about = file["uns"].create_group("atlas_edge")
        about.attrs.update(_kind("dict", "0.1.0"))
        for name, value in attributes.items():
            _value(about, name, value)
        features = file.create_dataset("X", (len(coords), attributes["embed_dim"]), dtype="<f4")
        features.attrs.update(_kind("array"))
        for start, _, rows in kept_rows(journal, keep, grid):
            features[start : start + len(rows)] = rows


def _kind(name: str, version: str = _VERSION) -> dict[str, str]:
    return {"encoding-type": name, "encoding-version": version}


def _array(group: Any, name: str, values: NDArray[Any]) -> None:
    group.create_dataset(name, data=values).attrs.update(_kind("array"))


def _value(group: Any, name: str, value: Any) -> None:
    if isinstance(value, str):
        group.create_dataset(name, data=value).attrs.update(_kind("string"))
    elif np.ndim(value):
        _array(group, name, np.asarray(value))
    else:
        group.create_dataset(name, data=value).attrs.update(_kind("numeric-scalar"))


def _frame(file: Any, name: str, index: list[str], columns: dict[str, NDArray[Any]]) -> None:
    import h5py

    text = h5py.string_dtype()
    frame = file.create_group(name)
    frame.attrs.update({**_kind("dataframe"), _INDEX: _INDEX})
    frame.attrs.create("column-order", list(columns), shape=(len(columns),), dtype=text)
    frame.create_dataset(_INDEX, data=index, shape=(len(index),), dtype=text).attrs.update(_kind("string-array"))
    for column, values in columns.items():
        _array(frame, column, values)
