"""PathoROB's robustness index: does an encoder group tiles by biology or by medical centre?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.agreement import unit_rows
from atlas_edge.errors import InputError

# Neighbours that PathoROB uses on its three data sets.
PATHOROB_K = {"camelyon": 11, "tcga": 61, "tolkach": 46}
DEFAULT_K = PATHOROB_K["camelyon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessIndex:
    """PathoROB's robustness index, 0-1: 1 when only biology makes tiles neighbours, 0 when only the centre does.

    Attributes:
        index: RI = ΣSO / (ΣSO + ΣOS).
        k: Neighbours.
        subsets: Paired 2 x 2 subsets that were averaged; 0 when all tiles were one set.
        tiles: Tiles used.
        centers: Medical centres.
    """

    index: float
    k: int
    subsets: int
    tiles: int
    centers: int


def robustness_index(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    centers: Sequence[str],
    groups: Sequence[str],
    *,
    k: int = DEFAULT_K,
    paired: bool = False,
    subsets: Sequence[str] | None = None,
) -> RobustnessIndex:
    """Compute the index as PathoROB defines it (Kömen et al., BSD-3 code).

    Embeddings are L2-normalised; of each tile the k nearest by cosine are taken, tiles of the same slide excluded.
    Over all tiles and neighbours, SO counts those of the same class from another centre, OS those of another class
    from the same centre, and RI = ΣSO / (ΣSO + ΣOS).

    Args:
        embeddings: `(N, D)`.
        labels: `(N,)` biological classes.
        centers: `(N,)` medical centres.
        groups: `(N,)` slides.
        k: Neighbours: 11 on Camelyon, 61 on TCGA, 46 on Tolkach.
        paired: As on TCGA: the mean over subsets of two classes and two centres that fill all four cells.
        subsets: `(N,)` names of the paired subsets where the tile set has them, as PathoROB's TCGA does; all that
            classes and centres allow when None, or where the names are of something else (`ID`, `OOD`).

    Raises:
        InputError: Fewer than two classes or centres, or no neighbour of either kind.
    """
    counts = np.stack([np.unique(np.asarray(column), return_inverse=True)[1] for column in (labels, centers, groups)])
    classes, places, slides = counts
    if classes.max() == 0 or places.max() == 0:
        raise InputError(
            f"{classes.max() + 1} class and {places.max() + 1} centre, the robustness index needs two of each",
            hint="leave the index out for this tile set, or add tiles of another centre",
        )
    unit = unit_rows(embeddings)
    masks = [np.ones(len(unit), np.bool_)]
    if paired:
        masks = _named_subsets(classes, places, subsets) or _paired_subsets(classes, places)
    indices = []
    for mask in masks:
        so, os_ = neighbour_counts(unit[mask], classes[mask], places[mask], slides[mask], k=k)
        if so.sum() + os_.sum() > 0:
            indices.append(float(so.sum() / (so.sum() + os_.sum())))
    if not indices:
        raise InputError(
            f"no tile has a neighbour of its class from another centre, or of another class from its own (k = {k})",
            hint="use a larger --robustness-k",
        )
    return RobustnessIndex(
        index=float(np.mean(indices)),
        k=k,
        subsets=len(indices) if paired else 0,
        tiles=int(np.any(masks, axis=0).sum()),
        centers=int(places.max()) + 1,
    )


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
        k: Neighbours; fewer where fewer tiles lie outside the slide.
    """
    so, os_ = np.zeros(len(unit), np.int64), np.zeros(len(unit), np.int64)
    neighbours = min(k, len(unit) - 1)
    for start in range(0, len(unit), 1024):  # bounds memory at 1024 x N similarities
        rows = slice(start, start + 1024)
        similarity = unit[rows] @ unit.T
        similarity[slides[rows, None] == slides[None, :]] = -np.inf
        nearest = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
        outside = np.isfinite(np.take_along_axis(similarity, nearest, axis=1))
        same_class = classes[nearest] == classes[rows, None]
        same_center = centers[nearest] == centers[rows, None]
        so[rows] = (outside & same_class & ~same_center).sum(axis=1)
        os_[rows] = (outside & ~same_class & same_center).sum(axis=1)
    return so, os_


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
