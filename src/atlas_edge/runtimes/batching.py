"""Any number of tiles through a graph that takes a fixed batch, or in pieces that bound the memory."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def encode_in_pieces(
    tiles: NDArray[np.uint8], infer: Infer, *, piece: int, embed_dim: int, fixed: bool
) -> NDArray[np.float32]:
    """Run `infer` over consecutive pieces of a batch.

    Args:
        tiles: `(B, H, W, 3)` uint8.
        infer: Maps a piece to `(P, D)`; its result may be overwritten by the next call.
        piece: Tiles a call.
        embed_dim: D.
        fixed: The graph takes exactly `piece` tiles: the last piece is filled up with copies of its last tile.

    Returns:
        `(B, D)` float32, owned by the caller.
    """
    embeddings = np.empty((len(tiles), embed_dim), dtype=np.float32)
    for rows, chunk in pieces(tiles, piece, fixed=fixed):
        embeddings[rows] = infer(chunk)[: rows.stop - rows.start]
    return embeddings


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
