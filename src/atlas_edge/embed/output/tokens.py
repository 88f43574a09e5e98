"""Patch tokens of every tile: dense features, and by far the largest part of an output."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.resume.journal import Journal
from atlas_edge.encoder import check_gives_tokens
from atlas_edge.errors import UsageError
from atlas_edge.spec import EncoderSpec

TOKENS = "tokens"

_FORMS = (".h5", ".hdf5", ".zarr")
_TILES = 32  # at a time, of a fifth of a megabyte each


def check_tokens(out: Path, spec: EncoderSpec) -> None:
    """Refuse patch tokens where an encoder gives none, or an output holds none.

    Raises:
        UsageError: It does.
    """
    check_gives_tokens(spec)
    if out.suffix not in _FORMS:
        raise UsageError(f"--tokens: {out.suffix} holds no patch tokens", hint="use --form h5 or zarr")


def tokens_shape(spec: EncoderSpec) -> tuple[int, int]:
    """Tokens of a tile, and numbers of each."""
    assert spec.tokens is not None
    return spec.tokens.rows * spec.tokens.columns, spec.tokens.channels


def tokens_in_words(spec: EncoderSpec) -> str:
    """What they are, and what they take."""
    tokens, channels = tokens_shape(spec)
    return f"{spec.tokens}: {2 * tokens * channels / 1e3:.1f} kB a tile as float16"


def write_tokens(
    create: Callable[..., Any], journal: Journal, keep: NDArray[np.bool_], *, in_chunks: bool = False
) -> None:
    """Write `tokens` `(N, rows * columns, C)` float16, where they are kept.

    Args:
        create: Of a file of h5py or a group of zarr, what creates an array.
        journal: Holds them.
        keep: Tiles to write.
        in_chunks: Some tiles a chunk, which are one file of zarr's; HDF5 would fill the last one up.
    """
    shape_of_one = journal.shape_of(TOKENS)
    if shape_of_one is None:
        return
    shape = (int(keep.sum()), *shape_of_one)
    chunks = {"chunks": (max(min(_TILES, shape[0]), 1), *shape[1:])} if in_chunks else {}
    tokens = create(TOKENS, shape=shape, dtype="<f2", **chunks)
    for start, part in _kept(journal, keep):
        tokens[start : start + len(part)] = part


def _kept(journal: Journal, keep: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Those of readable tiles some at a time, and their place in the output."""
    done = 0
    for start in range(0, len(keep), _TILES):
        stop = min(start + _TILES, len(keep))
        part = journal.read(start, stop, TOKENS)[keep[start:stop]]
        if len(part):
            yield done, part
        done += len(part)
