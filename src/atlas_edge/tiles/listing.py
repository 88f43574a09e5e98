"""Records that are made when they are asked for."""

from collections.abc import Callable, Sequence
from typing import overload

from atlas_edge.tiles.source import TileRecord


class Listing(Sequence[TileRecord]):
    """So many records, of which none is held.

    Args:
        record: The one of a number.
        count: How many there are.
    """

    def __init__(self, record: Callable[[int], TileRecord], count: int) -> None:
        self._record, self._count = record, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> TileRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[TileRecord]: ...
    def __getitem__(self, number: int | slice) -> TileRecord | Sequence[TileRecord]:
        found = range(self._count)[number]
        return self._record(found) if isinstance(found, int) else [self._record(each) for each in found]
