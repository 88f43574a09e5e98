"""Whether tiles that fit and tiles that judge are the same ones, and parting a set so that they are not."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from atlas_edge.errors import InputError
from atlas_edge.tiles.sample import draw_rank
from atlas_edge.tiles.source import TileRecord, TileSource

Tiles = tuple[TileSource, Sequence[TileRecord]]

# Pairs of tiles with equal names in two sets, of which the pixels are compared.
_COMPARED = 16
# Grey levels (0-255): tiles of empty glass are alike without being the same.
_LEAST_CONTRAST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What two sets of tiles have in common.

    Attributes:
        slides: Names of slides, sorted.
        tiles: Ids in the second set of tiles that are in the first, too, sorted. Of copied tiles only a few are known.
    """

    slides: tuple[str, ...]
    tiles: tuple[str, ...]


def check_disjoint(
    calibration: Tiles,
    evaluation: Tiles,
    *,
    names: tuple[str, str] = ("calibration", "evaluation"),
    options: tuple[str, str] = ("--calib", "--eval"),
) -> None:
    """Refuse tiles to fit on of which the slides, or the tiles themselves, are also judged; see `find_overlap`.

    Args:
        calibration: A source and the tiles of it that are fitted.
        evaluation: A source and the tiles of it that judge.
        names: What an error calls the two.
        options: What the user gave them with.

    Raises:
        InputError: A slide or tile is in both.
    """
    found = find_overlap(calibration, evaluation)
    shared, what = (found.slides, "slides") if found.slides else (found.tiles, "tiles")
    if shared:
        raise InputError(
            f"{len(shared)} {what} (such as {shared[0]}) are in both the {names[0]} tiles and the {names[1]} tiles: "
            "the figures would flatter",
            hint=f"give {options[0]} and {options[1]} other slides, or PATH@train and PATH@test",
        )


def find_overlap(first: Tiles, second: Tiles) -> Overlap:
    """Slides and tiles that are in both.

    Slides of two sources are compared by name, those of synthetic tiles by seed and name. Tiles are the same where the
    same file holds them at the same place, however its path is spelt. Where slides are not known on both sides, tiles
    of equal names may be copies: the pixels of a few such pairs are compared.
    """
    (source, records), (other, others) = first, second
    slides = _slides(source, records) & _slides(other, others)
    same_file = _FileNumbers()
    places = {same_file(source.place(record)) for record in records}
    tiles = {record.id for record in others if same_file(other.place(record)) in places}
    if not slides and not tiles and not all(record.group for record in (*records, *others)):
        tiles = set(_copies(first, second))
    return Overlap(slides=tuple(sorted(name for _, name in slides)), tiles=tuple(sorted(tiles)))


def halves(records: Sequence[TileRecord], *, seed: int = 0) -> tuple[list[TileRecord], list[TileRecord]]:
    """Part tiles without splits into two halves; see `in_first_half`.

    Returns:
        Tiles to calibrate and fit on, and tiles to evaluate on, both in their order.

    Raises:
        InputError: All tiles are of one slide.
    """
    first = in_first_half(records, seed=seed)
    return [record for record in records if first(record)], [record for record in records if not first(record)]


def in_first_half(records: Iterable[TileRecord], *, seed: int = 0) -> Callable[[TileRecord], bool]:
    """Part tiles into two halves that share no slide (or no tile, where no slides are known).

    Each class is parted in halves where slides allow it. 12 bytes a tile are held meanwhile.

    Returns:
        Whether a tile is in the first half.

    Raises:
        InputError: All tiles are of one slide.
    """
    labels: dict[str, int] = {}
    ranks, codes = array("Q"), array("I")
    for record in records:
        ranks.append(_unit_rank(seed, record))
        codes.append(labels.setdefault(str(record.label), len(labels)))
    units, firsts = np.unique(np.frombuffer(ranks, dtype=np.uint64), return_index=True)
    if len(units) < 2:
        raise InputError(
            "all tiles are of one slide: none is left to judge what was calibrated on the others",
            hint="name tiles of another slide to judge by",
        )
    by_name = np.argsort(np.argsort(np.array(list(labels))))
    label = by_name[np.frombuffer(codes, dtype=np.uint32)[firsts]]
    chosen = np.sort(units[np.lexsort((units, label))[::2]])

    def is_in(record: TileRecord) -> bool:
        rank = np.uint64(_unit_rank(seed, record))
        return bool(chosen[min(int(np.searchsorted(chosen, rank)), len(chosen) - 1)] == rank)

    return is_in


class _FileNumbers:
    """Puts what identifies a file in the place of its path: links and other spellings then compare as equal."""

    def __init__(self) -> None:
        self._last: tuple[str, tuple[int, int] | str] = ("", "")

    def __call__(self, place: tuple[str, str]) -> tuple[tuple[int, int] | str, str]:
        path, inside = place
        # A container holds many tiles in a row, a file one.
        if path != self._last[0]:
            self._last = path, _file_number(path)
        return self._last[1], inside


def _file_number(path: str) -> tuple[int, int] | str:
    try:
        found = os.stat(path)  # noqa: PTH116 - a million of them: no Path for each
    except OSError:
        return os.path.realpath(path)
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def _slides(source: TileSource, records: Iterable[TileRecord]) -> set[tuple[str, str]]:
    return {(source.place(record)[0] if source.synthetic else "", record.group) for record in records if record.group}


def _copies(first: Tiles, second: Tiles) -> Iterator[str]:
    """Ids in the second set of tiles that the first has under the same name and with the same pixels."""
    (source, _), (other, _) = first, second
    for record, twin in _namesakes(first[1], second[1]):
        try:
            pixels, others = source.read(record), other.read(twin)
        except InputError:
            continue  # said where the tile is used, if it is
        if pixels.shape == others.shape and (pixels == others).all() and int(pixels.std()) >= _LEAST_CONTRAST:
            yield twin.id


def _namesakes(records: Sequence[TileRecord], others: Sequence[TileRecord]) -> Iterator[tuple[TileRecord, TileRecord]]:
    """A few pairs that have the same id or, where there are none, end in the same folder and name, or name."""
    keys: tuple[Callable[[TileRecord], str], ...] = (
        lambda record: record.id,
        lambda record: "/".join(PurePosixPath(record.id).parts[-2:]),
        lambda record: PurePosixPath(record.id).name,
    )
    for key in keys:
        named = {key(record): record for record in records}
        twins = [record for record in others if key(record) in named]
        if twins:
            twins.sort(key=lambda record: draw_rank(0, record.id))
            yield from ((named[key(twin)], twin) for twin in twins[:_COMPARED])
            return


def _unit_rank(seed: int, record: TileRecord) -> int:
    return draw_rank(seed, record.group or record.id)
