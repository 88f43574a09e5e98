"""What of a journal goes into an output: its readable tiles, and the slide as a whole."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.output.slide_features import geometric_median_of, mean_of
from atlas_edge.embed.pipeline import MEASURES
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.slides import TileGrid

ROWS = 4096
"""Tiles at a time."""


def of_tiles(journal: Journal, keep: NDArray[np.bool_], grid: TileGrid) -> dict[str, NDArray[np.float32]]:
    """What is known of each readable tile beside its embedding, `(N,)` float32 each."""
    found = {name: journal.read(0, len(keep), name)[keep] for name in MEASURES}
    return found if grid.tissue_share is None else {"tissue_share": grid.tissue_share[keep], **found}


def of_skipped(keep: NDArray[np.bool_], grid: TileGrid) -> dict[str, NDArray[np.int64]]:
    """Tiles that were not to be embedded, `(M, 2)`, and the row of the one that stands for each, `(M,)`.

    Where that one was unreadable, the nearest readable one does; -1 where none is. Nothing where all were embedded.
    """
    if grid.skipped is None:
        return {}
    by = np.array(grid.skipped.by)
    readable = np.flatnonzero(keep)
    for lost in np.flatnonzero(~keep) if len(readable) else ():
        away = ((grid.coords[readable] - grid.coords[lost]) ** 2).sum(axis=1)
        by[grid.skipped.by == lost] = readable[away.argmin()]
    row = np.where(keep, np.cumsum(keep) - 1, -1)
    return {"skipped_coords": grid.skipped.coords, "skipped_row": row[by]}


def of_slide(
    journal: Journal, keep: NDArray[np.bool_], grid: TileGrid
) -> dict[str, tuple[NDArray[np.float32], dict[str, str]]]:
    """Embeddings of the slide as a whole, `(D,)` float32 each, and how each was made."""
    if not keep.any():
        return {}

    def rows() -> Iterator[NDArray[np.float32]]:
        return (part for _, _, part in kept_rows(journal, keep, grid) if len(part))

    return {
        "slide_features": (mean_of(rows), {"pooling": "mean"}),
        "slide_features_median": (geometric_median_of(rows), {"pooling": "geometric median"}),
    }


def kept_rows(
    journal: Journal, keep: NDArray[np.bool_], grid: TileGrid
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """Position in the output, coords and features of readable tiles, some thousand at a time."""
    done = 0
    for start in range(0, len(keep), ROWS):
        part = slice(start, min(start + ROWS, len(keep)))
        rows = journal.read(part.start, part.stop)[keep[part]]
        yield done, grid.coords[part][keep[part]], rows
        done += len(rows)
