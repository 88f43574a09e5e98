"""Tile sources: folders, packs, parquet, HDF5 and the synthetic sample, all streamed."""

from atlas_edge.options import TileFit
from atlas_edge.tiles.open import open_tiles, without_split
from atlas_edge.tiles.sample import provenance, select_records
from atlas_edge.tiles.source import TileBatch, TileRecord, TileSource, batches, fit_tile

__all__ = [
    "TileBatch",
    "TileFit",
    "TileRecord",
    "TileSource",
    "batches",
    "fit_tile",
    "open_tiles",
    "provenance",
    "select_records",
    "without_split",
]
