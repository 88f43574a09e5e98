"""The file that downstream tools read: HDF5 with `features` and `coords`, as CLAM and TRIDENT write it."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from atlas_edge.cli import require_module
from atlas_edge.embed.journal import Journal
from atlas_edge.slides import TileGrid

_ROWS = 4096


def write_hdf5(out: Path, journal: Journal, grid: TileGrid, attributes: dict[str, Any]) -> int:
    """Write `out` whole or not at all; unreadable tiles are left out of it and listed in `unreadable_coords`.

    Returns:
        Rows written.
    """
    require_module("h5py", extra="slides")
    import h5py

    keep = np.ones(len(grid.coords), dtype=bool)
    keep[list(journal.unreadable)] = False
    partial = out.parent / f".{out.name}.new"
    try:
        with h5py.File(partial, "w") as file:
            file.attrs.update(attributes)
            coords = file.create_dataset("coords", data=grid.coords[keep])
            coords.attrs["patch_size"] = grid.tile_px
            coords.attrs["patch_level"] = grid.level
            coords.attrs["patch_size_level0"] = round(grid.size_x)
            file.create_dataset("unreadable_coords", data=grid.coords[~keep])
            count = int(keep.sum())
            features = file.create_dataset("features", (count, attributes["embed_dim"]), dtype="<f4")
            done = 0
            for start in range(0, len(keep), _ROWS):
                stop = min(start + _ROWS, len(keep))
                rows = journal.read(start, stop)[keep[start:stop]]
                features[done : done + len(rows)] = rows
                done += len(rows)
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count
