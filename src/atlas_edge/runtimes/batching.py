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
    for start, chunk in _pieces(tiles, piece):
        count = len(chunk)
        if fixed and count < piece:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], piece - count, axis=0)])
        embeddings[start : start + count] = infer(chunk)[:count]
    return embeddings


def _pieces(tiles: NDArray[np.uint8], piece: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for start in range(0, len(tiles), piece):
        yield start, np.ascontiguousarray(tiles[start : start + piece])
