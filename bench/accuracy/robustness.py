"""PathoROB's robustness index: does an encoder group tiles by biology or by medical centre?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import unit_rows
from atlas_edge.errors import InputError

# Neighbours that PathoROB uses on its three data sets.
PATHOROB_K = {"camelyon": 11, "tcga": 61, "tolkach": 46}
DEFAULT_K = PATHOROB_K["camelyon"]


# PathoROB's name for tiles that its index leaves out.
OUT_OF_DISTRIBUTION = "OOD"


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessIndex:
    """PathoROB's robustness index, 0-1: 1 when only biology makes tiles neighbours, 0 when only the centre does.

    Attributes:
        index: RI = ΣSO / (ΣSO + ΣOS).
        k: Neighbours of each tile: as many as were asked for, or as the tiles of the largest slide have outside it.
        subsets: Paired 2 x 2 subsets whose neighbours were pooled; 0 when all tiles were one set.
        tiles: Tiles used.
        centers: Medical centres.
        left_out: Tiles of PathoROB's subset `OOD`, which its index does not use.
    """

    index: float
    k: int
    subsets: int
    tiles: int
    centers: int
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourCounts:
    """What the index sums, tile by tile.

    Attributes:
        so: `(N,)` neighbours of the same class from another centre.
        os: `(N,)` neighbours of another class from the same centre.
        index: With what was counted.
    """

    so: NDArray[np.int64]
    os: NDArray[np.int64]
    index: RobustnessIndex


def robustness_counts(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    centers: Sequence[str],
    groups: Sequence[str],
    *,
    k: int = DEFAULT_K,
    paired: bool = False,
    subsets: Sequence[str] | None = None,
) -> NeighbourCounts:
    """Count the neighbours that the index is made of, as PathoROB defines it and its code computes it (Kömen et al.).

    Embeddings are L2-normalised; of each tile the k nearest by cosine are taken, tiles of the same slide excluded; all
    tiles keep as many as the one that has fewest. Over all tiles and neighbours, SO counts those of the same class
    from another centre, OS those of another class from the same centre, and RI = ΣSO / (ΣSO + ΣOS). Tiles of a subset
    `OOD` are left out, unless there are no others.

    Args:
        embeddings: `(N, D)`.
        labels: `(N,)` biological classes.
        centers: `(N,)` medical centres.
        groups: `(N,)` slides.
        k: Neighbours: 11 on Camelyon, 61 on TCGA, 46 on Tolkach.
        paired: As on TCGA: neighbours within subsets of two classes and two centres that fill all four cells, summed
            over all subsets.
        subsets: `(N,)` names of the paired subsets where the tile set has them, as PathoROB's TCGA does; all that
            classes and centres allow when None, or where the names are of something else (`ID`, `OOD`).

    Raises:
        InputError: Fewer than two classes or centres, or no neighbour of either kind.
    """
    used = pathorob_tiles(subsets, len(embeddings))
    counts = np.stack([np.unique(np.asarray(column), return_inverse=True)[1] for column in (labels, centers, groups)])
    classes, places, slides = counts
    kinds, sites = len(np.unique(classes[used])), len(np.unique(places[used]))
    if kinds < 2 or sites < 2:
        raise InputError(
            f"{kinds} class and {sites} centre, the robustness index needs two of each",
            hint="leave the index out for this tile set, or add tiles of another centre",
        )
    masks = [used]
    if paired:
        names = None if subsets is None else [name for name, one in zip(subsets, used, strict=True) if one]
        found = _named_subsets(classes[used], places[used], names) or _paired_subsets(classes[used], places[used])
        masks = [_within(used, mask) for mask in found]
    most = min((fewest_outside(slides[mask]) for mask in masks), default=0)
    neighbours = min(k, most)
    so, os_ = np.zeros(len(embeddings), np.int64), np.zeros(len(embeddings), np.int64)
    unit = unit_rows(embeddings)
    for mask in masks if neighbours else []:
        same, other = neighbour_counts(unit[mask], classes[mask], places[mask], slides[mask], k=neighbours)
        so[mask] += same
        os_[mask] += other
    if so.sum() + os_.sum() == 0:
        raise InputError(
            f"no tile has a neighbour of its class from another centre, or of another class from its own (k = {k})",
            hint="use a larger --robustness-k",
        )
    index = RobustnessIndex(
        index=float(so.sum() / (so.sum() + os_.sum())),
        k=neighbours,
        subsets=len(masks) if paired else 0,
        tiles=int(np.any(masks, axis=0).sum()),
        centers=sites,
        left_out=int((~used).sum()),
    )
    return NeighbourCounts(so=so, os=os_, index=index)


def pathorob_tiles(subsets: Sequence[str] | None, tiles: int) -> NDArray[np.bool_]:
    """Which of the tiles PathoROB's index uses, `(tiles,)`: all but those of `OOD`, unless there are no others."""
    if subsets is None or set(subsets) == {OUT_OF_DISTRIBUTION}:
        return np.ones(tiles, np.bool_)
    used: NDArray[np.bool_] = np.asarray(subsets) != OUT_OF_DISTRIBUTION
    return used


def neighbour_counts(
    unit: NDArray[np.float64],
    classes: NDArray[np.int64],
    centers: NDArray[np.int64],
    slides: NDArray[np.int64],
    *,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each tile's k nearest outside its slide: how many are SO, and how many OS.

    Args:
        unit: `(N, D)` L2-normalised.
        classes: `(N,)` class numbers.
        centers: `(N,)` centre numbers.
        slides: `(N,)` slide numbers.
        k: Neighbours; every tile has at least so many outside its slide.
    """
    so, os_ = np.zeros(len(unit), np.int64), np.zeros(len(unit), np.int64)
    for start in range(0, len(unit), 1024):  # bounds memory at 1024 x N similarities
        rows = slice(start, start + 1024)
        similarity = unit[rows] @ unit.T
        similarity[slides[rows, None] == slides[None, :]] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        same_class = classes[nearest] == classes[rows, None]
        same_center = centers[nearest] == centers[rows, None]
        so[rows] = (same_class & ~same_center).sum(axis=1)
        os_[rows] = (~same_class & same_center).sum(axis=1)
    return so, os_


def fewest_outside(slides: NDArray[np.int64]) -> int:
    """Tiles outside the largest slide: every tile has so many neighbours; `slides` are `(N,)` numbers."""
    return len(slides) - int(np.bincount(slides).max())


def _within(used: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask over the used tiles, as one over all."""
    whole = np.zeros(len(used), np.bool_)
    whole[np.flatnonzero(used)[mask]] = True
    return whole


def _named_subsets(
    classes: NDArray[np.int64], centers: NDArray[np.int64], names: Sequence[str] | None
) -> list[NDArray[np.bool_]]:
    """The tile set's own subsets; none where one of them is not two classes at two centres."""
    if names is None:
        return []
    masks = [np.asarray(names) == name for name in sorted(set(names))]
    cells = [{(int(a), int(b)) for a, b in zip(classes[mask], centers[mask], strict=True)} for mask in masks]
    square = all(
        len(found) == 4 and len({a for a, _ in found}) == 2 and len({b for _, b in found}) == 2 for found in cells
    )
    return masks if square else []


def _paired_subsets(classes: NDArray[np.int64], centers: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    filled = {(int(a), int(b)) for a, b in zip(classes, centers, strict=True)}
    subsets = []
    for pair in combinations(range(int(classes.max()) + 1), 2):
        for places in combinations(range(int(centers.max()) + 1), 2):
            if {(a, b) for a in pair for b in places} <= filled:
                subsets.append(np.isin(classes, pair) & np.isin(centers, places))
    return subsets
