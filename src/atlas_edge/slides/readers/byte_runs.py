"""Which pieces of a file are read by one request: over a share each request waits, whatever it asks for."""

from collections.abc import Iterable
from typing import NamedTuple

# At 20 MB/s and 20 ms a request, 400 kB cost as much as a request.
_GAP_BYTES = 1 << 16
_LONGEST_BYTES = 1 << 22


class Piece(NamedTuple):
    """So many bytes from a place on; `key` says whose."""

    offset: int
    length: int
    key: int

    @property
    def end(self) -> int:
        """The place behind its last byte."""
        return self.offset + self.length


def byte_runs(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Part pieces into runs that lie together, from the beginning of the file on.

    Between two pieces of a run at most 64 KiB lie unused, and a run spans at most 4 MiB. A piece that is longer, or
    empty, or before the beginning of the file, is in none.
    """
    runs: list[list[Piece]] = []
    for piece in sorted(piece for piece in pieces if piece.offset >= 0 and 0 < piece.length <= _LONGEST_BYTES):
        near = runs and piece.offset - max(before.end for before in runs[-1]) <= _GAP_BYTES
        if near and piece.end - runs[-1][0].offset <= _LONGEST_BYTES:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs
