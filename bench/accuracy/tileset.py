"""The tiles of a report: which were picked, what is known of them, and their embeddings by several encoders at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.plism import Scan
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.manifest import TilesProvenance
from atlas_edge.tiles import TileFit, TileRecord, TileSource, fit_tile
from atlas_edge.tiles.source import ahead

_BATCH = 32
_THREADS = 2

Shift = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TileSet:
    """Tiles picked from a source, in its order.

    Attributes:
        source: Where their pixels are.
        records: Which.
        fit: What happens to tiles of another size than an encoder takes.
    """

    source: TileSource
    records: tuple[TileRecord, ...]
    fit: TileFit = "exact"

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """Biological classes, or None where one is unknown."""
        return _complete([record.label for record in self.records])

    @cached_property
    def groups(self) -> tuple[str, ...] | None:
        """Slides or patients, or None where one is unknown."""
        return _complete([record.group for record in self.records])

    @cached_property
    def group_numbers(self) -> NDArray[np.int64] | None:
        """`(N,)` numbers of the groups, for resampling."""
        return None if self.groups is None else np.unique(np.asarray(self.groups), return_inverse=True)[1]

    @cached_property
    def centers(self) -> tuple[str, ...] | None:
        """Medical centres, or None where one is unknown."""
        return _complete([record.center for record in self.records])

    @cached_property
    def subsets(self) -> tuple[str, ...] | None:
        """Splits, which PathoROB calls subsets, or None where one is unknown."""
        return _complete([record.split for record in self.records])

    @cached_property
    def scans(self) -> tuple[Scan, ...] | None:
        """Scanner and stain of each tile, or its slide; None where neither is known."""
        names = _complete([_scan(record) for record in self.records])
        if names is None:
            return None
        each = zip(names, self.records, strict=True)
        return tuple(Scan(name, record.scanner, record.stain) for name, record in each)

    @cached_property
    def positions(self) -> tuple[str, ...] | None:
        """Physical places; patients' places of equal names are told apart by `group`.

        None where one is unknown, or where each slide has places of its own, as tiles cut on a grid have: no twins.

        Raises:
            InputError: A scan has two tiles at one place, and no slides tell them apart.
        """
        places = _complete([record.position for record in self.records])
        if places is None or self.scans is None or (twice := _twice(self.scans, places)) is None:
            return places
        of_patients = tuple(f"{record.group} / {record.position}" for record in self.records)
        if self.groups is not None and _twice(self.scans, of_patients) is None:
            return of_patients if _twins(self.scans, of_patients) else None
        raise InputError(
            f"position {twice[1]} occurs twice on scan {twice[0].name}: no telling which of them is the other's twin",
            hint="name positions apart (patient and place), or give patients as group",
        )

    def provenance(self) -> TilesProvenance:
        """What a report says of these tiles."""
        return TilesProvenance(
            name=self.source.name,
            kind=self.source.kind,
            split=self.source.split,
            tiles=len(self.records),
            fingerprint=self.source.fingerprint(),
            synthetic=self.source.synthetic,
            licence=self.source.licence,
        )

    def head(self, count: int) -> "TileSet":
        """At most `count` tiles, balanced over the labels."""
        return TileSet(source=self.source, records=_balanced(self.records, count), fit=self.fit)

    def pixels(self, tile_px: int) -> NDArray[np.uint8]:
        """All tiles decoded, `(N, tile_px, tile_px, 3)`: for a few tiles only."""
        tiles = [fit_tile(self.source.read(record), tile_px, self.fit, name=record.id) for record in self.records]
        return np.stack(tiles)


def pick_tiles(
    source: TileSource, *, records: Iterable[TileRecord] | None = None, limit: int | None, fit: TileFit = "exact"
) -> TileSet:
    """Pick tiles: all of them, or `limit` balanced over the labels, spread evenly through the source.

    Of registered scans whole positions are picked, so that every tile keeps its twins.

    Args:
        source: Where they are.
        records: Those that may be picked; all of the source when None.
        limit: Most tiles to pick; None for all.
        fit: What happens to tiles of another size than an encoder takes.
    """
    records = tuple(source.records() if records is None else records)
    if limit is not None and len(records) > limit:
        records = _registered(records, limit) or _balanced(records, limit)
    return TileSet(source=source, records=records, fit=fit)


def embed_tiles(
    encoders: Mapping[str, Encoder],
    tiles: TileSet,
    *,
    shift: Shift | None = None,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Embed the same tiles with every encoder; each tile is decoded once.

    Args:
        encoders: Name -> encoder.
        tiles: Which tiles.
        shift: Applied to each tile at its own size before it is fitted to an encoder.
        progress: Called with the number of embeddings made.

    Returns:
        Name -> `(N, D)` float32.
    """

    def decode(record: TileRecord) -> NDArray[np.uint8]:
        tile = tiles.source.read(record)
        return tile if shift is None else shift(tile)

    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in encoders}
    # While encoders compute, the tiles of the next batch are decoded.
    with closing(ahead(decode, tiles.records, threads=_THREADS, most=_BATCH)) as pixels:
        for held in _chunks(tiles.records):
            decoded = list(islice(pixels, len(held)))
            stacks: dict[int, NDArray[np.uint8]] = {}
            for name, encoder in encoders.items():
                side = encoder.spec.tile_px
                if side not in stacks:
                    fitted = [
                        fit_tile(tile, side, tiles.fit, name=record.id)
                        for tile, record in zip(decoded, held, strict=True)
                    ]
                    stacks[side] = np.stack(fitted)
                found[name].append(encoder.encode(stacks[side]))
                if progress is not None:
                    progress(len(held))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _chunks(records: Sequence[TileRecord]) -> list[Sequence[TileRecord]]:
    return [records[start : start + _BATCH] for start in range(0, len(records), _BATCH)]


def _complete(column: Sequence[str | None]) -> tuple[str, ...] | None:
    found = tuple(value for value in column if value is not None)
    return found if len(found) == len(column) and found else None


def _twice(scans: Sequence[Scan], places: Sequence[str]) -> tuple[Scan, str] | None:
    seen: set[tuple[Scan, str]] = set()
    for found in zip(scans, places, strict=True):
        if found in seen:
            return found
        seen.add(found)
    return None


def _twins(scans: Sequence[Scan], places: Sequence[str]) -> bool:
    """Whether a place is on two scans."""
    return len(set(zip(scans, places, strict=True))) > len(set(places))


def _scan(record: TileRecord) -> str | None:
    return " / ".join(part for part in (record.scanner, record.stain) if part) or record.group


def _registered(records: tuple[TileRecord, ...], limit: int) -> tuple[TileRecord, ...]:
    """Whole positions, spread evenly; empty where fewer than two would fit or no position is on two scans."""
    scans_of: dict[str, set[str | None]] = {}
    for record in records:
        if record.position is not None:
            scans_of.setdefault(record.position, set()).add(_scan(record))
    shared = [position for position, scans in scans_of.items() if len(scans) > 1]
    if not shared:
        return ()
    count = min(len(shared), limit // max(len(scans_of[position]) for position in shared))
    if count < 2:
        return ()
    kept = {shared[int(index)] for index in np.linspace(0, len(shared) - 1, count).round()}
    return tuple(record for record in records if record.position in kept)


def _balanced(records: tuple[TileRecord, ...], limit: int) -> tuple[TileRecord, ...]:
    if len(records) <= limit:
        return records
    by_label: dict[str | None, list[int]] = {}
    for index, record in enumerate(records):
        by_label.setdefault(record.label, []).append(index)
    quota = dict.fromkeys(by_label, 0)
    while sum(quota.values()) < limit:
        # The label that has got least and has tiles left takes the next one; ties in the order of the source.
        label = min((key for key in quota if quota[key] < len(by_label[key])), key=lambda key: quota[key])
        quota[label] += 1
    chosen = [
        rows[int(position)]
        for label, rows in by_label.items()
        for position in np.linspace(0, len(rows) - 1, quota[label]).round()
    ]
    return tuple(records[index] for index in sorted(chosen))
