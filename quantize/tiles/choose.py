"""Choosing the tiles that set the quantization scales: balanced, in focus, and of tissue."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.quantize.tiles.screening import LEAST_SHARPNESS, LEAST_TISSUE, TileLook, look_at
from atlas_edge.tiles import TileFit, TileRecord, TileSource, fit_tile, select_records
from atlas_edge.tiles.sample import draw_rank

# Columns that say what a tile shows, and under which conditions; the most important first.
COLUMNS = ("label", "scanner", "stain", "group")
# Any of these says how a tile looks; without them its own colours must.
APPEARANCE = ("scanner", "stain", "group")
COLOUR = "colour"
COLOUR_STRATA = 8
# Tiles looked at for each that may be used.
CANDIDATES_A_TILE = 2

# Fewer set ranges that ordinary tiles leave (docs/quantization.md); below the second number a user is warned.
FEWEST_TILES, ENOUGH_TILES = 8, 32
# Tiles that `atlas-export` fits probes on by default.
FIT_LIMIT = 600
_POOL = 4

_FEWEST_A_STRATUM = 8


@dataclass(frozen=True, kw_only=True)
class CalibrationChoice:
    """The tiles that were chosen, and how.

    Attributes:
        records: In an order of which every beginning is balanced over the strata.
        pixels: `(N, tile_px, tile_px, 3)` uint8, of the same tiles.
        strata: Stratum of each of them, one value a field.
        fields: What the strata are made of: columns of the source, `colour` where it has none of `APPEARANCE`.
        candidates: Tiles looked at.
        background: How many of them were left out for want of tissue.
        blurred: How many were left out as out of focus.
        looks: Of the chosen tiles.
    """

    records: tuple[TileRecord, ...]
    pixels: NDArray[np.uint8]
    strata: tuple[tuple[str, ...], ...]
    fields: tuple[str, ...]
    candidates: int
    background: int
    blurred: int
    looks: tuple[TileLook, ...]

    def first(self, count: int) -> "CalibrationChoice":
        """The same choice with fewer tiles, still balanced."""
        return CalibrationChoice(
            records=self.records[:count],
            pixels=self.pixels[:count],
            strata=self.strata[:count],
            fields=self.fields,
            candidates=self.candidates,
            background=self.background,
            blurred=self.blurred,
            looks=self.looks[:count],
        )

    def as_dict(self) -> dict[str, Any]:
        """For manifests and reports: no pixels, no ids (the fingerprint covers those)."""
        return {
            "tiles": len(self.records),
            "candidates": self.candidates,
            "left_out": {
                f"tissue below {LEAST_TISSUE:.0%}": self.background,
                f"sharpness below {LEAST_SHARPNESS:g} of the median": self.blurred,
            },
            "stratified_by": list(self.fields),
            "tiles_a_stratum": {" / ".join(key): count for key, count in sorted(Counter(self.strata).items())},
        }


def calibration_pool(
    records: Iterable[TileRecord], *, limit: int, fit_limit: int = FIT_LIMIT, seed: int = 0
) -> list[TileRecord]:
    """The tiles that calibration tiles are chosen from, for `atlas-export` and whatever shows what it does.

    Args:
        records: Those that may be used.
        limit: Most tiles to choose.
        fit_limit: Tiles that probes are fitted on: how few must not decide what scales are chosen from.
        seed: Another seed draws others.
    """
    return select_records(records, max(fit_limit, _POOL * limit), seed=seed)


def choose_calibration(
    source: TileSource,
    records: Iterable[TileRecord] | None = None,
    *,
    limit: int,
    tile_px: int,
    fit: TileFit = "exact",
    seed: int = 0,
) -> CalibrationChoice:
    """Choose tiles to calibrate on.

    Twice as many candidates are drawn, stratified by the source's columns, and looked at. Background and blur are left
    out. The rest is put into strata: by class and by scanner, stain and slide where the source has them; where it has
    none of these three, by colour (8 clusters of haematoxylin and eosin densities). Strata then take turns.

    Args:
        source: Where the tiles are.
        records: Those that may be used; all of the source when None.
        limit: Most tiles to choose.
        tile_px: Side that the encoder takes.
        fit: What to do with tiles of another size.
        seed: Another seed chooses other tiles.

    Raises:
        InputError: Fewer than `FEWEST_TILES` have tissue and are in focus, or one cannot be read.
    """
    drawn = select_records(source if records is None else records, CANDIDATES_A_TILE * limit, seed=seed)
    pixels = [fit_tile(source.read(record), tile_px, fit, name=record.id) for record in drawn]
    # Read in the source's order, which may be the only fast one; chosen in one that does not depend on it.
    shuffled = sorted(range(len(drawn)), key=lambda index: draw_rank(seed, drawn[index].id))
    drawn, pixels = [drawn[index] for index in shuffled], [pixels[index] for index in shuffled]
    looks = [look_at(tile) for tile in pixels]
    tissue = [index for index, look in enumerate(looks) if look.tissue >= LEAST_TISSUE]
    if not tissue:
        raise InputError(
            f"none of {len(drawn)} tiles of {source.name} has tissue on {LEAST_TISSUE:.0%} of its area",
            hint="calibrate on tiles with tissue; a white or black tile sets no useful scale",
        )
    kept = _in_focus(tissue, drawn, looks)
    if min(len(kept), limit) < FEWEST_TILES:
        raise InputError(
            f"{min(len(kept), limit)} tiles of {source.name} can calibrate, at least {FEWEST_TILES} are needed "
            f"({len(drawn)} looked at, {len(drawn) - len(tissue)} without tissue, {len(tissue) - len(kept)} out of "
            f"focus, --calib-limit {limit})",
            hint=f"give {FEWEST_TILES} or more tiles with tissue; {ENOUGH_TILES} or more make good scales",
        )
    fields, strata = _strata([drawn[index] for index in kept], [looks[index] for index in kept], seed)
    order = _take_turns(strata, [draw_rank(seed, drawn[index].id) for index in kept])[:limit]
    chosen = [kept[position] for position in order]
    return CalibrationChoice(
        records=tuple(drawn[index] for index in chosen),
        pixels=np.stack([pixels[index] for index in chosen]),
        strata=tuple(strata[position] for position in order),
        fields=fields,
        candidates=len(drawn),
        background=len(drawn) - len(tissue),
        blurred=len(tissue) - len(kept),
        looks=tuple(looks[index] for index in chosen),
    )


def _in_focus(indices: Sequence[int], records: Sequence[TileRecord], looks: Sequence[TileLook]) -> list[int]:
    """Those that are not much softer than the median of their scanner."""
    of_scanner: defaultdict[str | None, list[int]] = defaultdict(list)
    for index in indices:
        of_scanner[records[index].scanner].append(index)
    everywhere = float(np.median([looks[index].sharpness for index in indices]))
    kept = []
    for members in of_scanner.values():
        enough = len(members) >= _FEWEST_A_STRATUM
        median = float(np.median([looks[index].sharpness for index in members])) if enough else everywhere
        kept += [index for index in members if looks[index].sharpness >= LEAST_SHARPNESS * median]
    return sorted(kept)


def _strata(
    records: Sequence[TileRecord], looks: Sequence[TileLook], seed: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    fields = [name for name in COLUMNS if len({getattr(record, name) for record in records}) > 1]
    keys = [tuple(str(getattr(record, name)) for name in fields) for record in records]
    if any(name in APPEARANCE for name in fields):
        return tuple(fields), keys
    colours = _colour_clusters(np.array([look.colour for look in looks]), seed)
    return (*fields, COLOUR), [(*key, f"{COLOUR} {colour}") for key, colour in zip(keys, colours, strict=True)]


def _colour_clusters(colours: NDArray[np.float64], seed: int) -> list[int]:
    from sklearn.cluster import KMeans

    count = min(COLOUR_STRATA, len(colours) // _FEWEST_A_STRATUM, len(np.unique(colours, axis=0)))
    if count < 2:
        return [0] * len(colours)
    deviation = colours.std(0)
    scaled = (colours - colours.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    found = KMeans(count, n_init=4, random_state=seed).fit(scaled)
    # Numbered from pale to dark, so that a report reads the same whatever the seed.
    rank = np.argsort(np.argsort(found.cluster_centers_[:, :2].sum(1)))
    return [int(rank[label]) for label in found.labels_]


def _take_turns(strata: Sequence[tuple[str, ...]], ranks: Sequence[int]) -> list[int]:
    """Positions, so that the values of the first field take turns, within each those of the second, and so on."""

    def ordered(members: list[int], depth: int) -> list[int]:
        parts: defaultdict[str, list[int]] = defaultdict(list)
        if depth == len(strata[members[0]]):
            return sorted(members, key=lambda position: ranks[position])
        for position in members:
            parts[strata[position][depth]].append(position)
        queues = [ordered(part, depth + 1) for _, part in sorted(parts.items())]
        # Who is first in a round changes by hash, not by name.
        queues.sort(key=lambda queue: ranks[queue[0]])
        return [position for turn in zip_longest(*queues) for position in turn if position is not None]

    return ordered(list(range(len(strata))), 0)
