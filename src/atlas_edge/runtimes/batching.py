"""Any number of tiles through a graph that takes a fixed batch, or in pieces that bound the memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Infer = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]]


def encode_in_pieces(
    tiles: NDArray[np.uint8], infer: Infer, *, piece: int, shapes: Sequence[tuple[int, ...]], fixed: bool
) -> list[NDArray[np.float32]]:
    """Run `infer` over consecutive pieces of a batch.

    Args:
        tiles: `(B, H, W, 3)` uint8.
        infer: Maps a piece to `(P, *shape)` of each shape; its results may be overwritten by the next call.
        piece: Tiles a call.
        shapes: Of what a tile gives.
        fixed: The graph takes exactly `piece` tiles: the last piece is filled up with copies of its last tile.

    Returns:
        `(B, *shape)` float32 of each shape, owned by the caller.
    """
    results = empty_results(len(tiles), shapes)
    for rows, chunk in pieces(tiles, piece, fixed=fixed):
        for result, found in zip(results, infer(chunk), strict=True):
            result[rows] = found[: rows.stop - rows.start]
    return results


def empty_results(count: int, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """`(count, *shape)` float32 of each shape, for `count` tiles."""
    return [np.empty((count, *shape), dtype=np.float32) for shape in shapes]


def pieces(tiles: NDArray[np.uint8], piece: int, *, fixed: bool) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Cut a batch into contiguous pieces.

    Args:
        tiles: `(B, H, W, 3)` uint8.
        piece: Tiles a piece.
        fixed: Fill the last piece up with copies of its last tile.

    Yields:
        The rows that a piece stands for, and its tiles.
    """
    for start in range(0, len(tiles), piece):
        chunk = np.ascontiguousarray(tiles[start : start + piece])
        count = len(chunk)
        if fixed and count < piece:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], piece - count, axis=0)])
        yield slice(start, start + count), chunk
