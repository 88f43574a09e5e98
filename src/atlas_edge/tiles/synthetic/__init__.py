"""Procedural H&E-like tiles, the same everywhere: `source` is the tile set, the others draw it."""
