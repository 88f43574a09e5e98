"""croma's own code on our embeddings, where it is installed: how far biology outweighs the centre, tile by tile.

Grisi, van der Laak and Litjens, A distributional robustness margin for pathology foundation models (arXiv 2607.25497):
RI and MaRI are 0 to 1, CRoMa is -1 to 1 with 0 where neither wins, and LTM10 is the mean of its worst tenth of tiles.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.robustness import fewest_outside, pathorob_tiles
from atlas_edge.bench.interval import Interval, mean_interval
from atlas_edge.errors import InputError
from atlas_edge.system.hardware import installed_module, installed_versions

_NAME = "croma"
_TAIL = 0.1
# How its message begins where a tile has no margin; every other error is one of the call.
_NO_MARGIN = "[CRoMa] "


@dataclass(frozen=True, slots=True, kw_only=True)
class CromaScores:
    """What croma says of one encoder.

    Attributes:
        version: Of croma.
        k: Neighbours of RI and MaRI.
        ri: Robustness index.
        mari: Margin-aware robustness index.
        croma: Median margin.
        ltm10: Mean of the worst tenth of margins.
        undefined: Share of tiles on which RI and MaRI say nothing, 0-1.
    """

    version: str
    k: int
    ri: float
    mari: float
    croma: float
    ltm10: float
    undefined: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CromaMargins:
    """Scores, and the margin of each tile, `(N,)`; NaN for those of subset `OOD`."""

    scores: CromaScores
    margins: NDArray[np.float64]


def croma_margins(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    centers: Sequence[str],
    groups: Sequence[str],
    *,
    k: int,
    subsets: Sequence[str] | None = None,
) -> CromaMargins | None:
    """Ask croma, over all tiles at once (its design `all`).

    None where it is not installed, or where a tile has no neighbour of its class from another centre, none of another
    class from its own, or both at no distance (embeddings that are all the same): croma then gives no margins.

    Args:
        embeddings: `(N, D)`.
        labels: `(N,)` biological classes.
        centers: `(N,)` medical centres.
        groups: `(N,)` slides.
        k: Neighbours of RI and MaRI; as many as all tiles have outside their slides, where that is fewer.
        subsets: `(N,)` PathoROB's; tiles of `OOD` are left out, as there.

    Raises:
        InputError: The croma that is installed has another interface.
    """
    if installed_module(_NAME) is None:
        return None
    import croma
    import pandas

    used = np.flatnonzero(pathorob_tiles(subsets, len(embeddings)))
    slides = np.unique(np.asarray(groups)[used], return_inverse=True)[1]
    k = min(k, fewest_outside(slides))
    if k == 0:
        return None
    manifest = pandas.DataFrame(
        {
            "sample_id": [str(row) for row in used],
            "image_path": "",
            "label": np.asarray(labels)[used],
            "group_id": np.asarray(groups)[used],
            "center": np.asarray(centers)[used],
        }
    )
    version = installed_versions((_NAME,)).get(_NAME, "unknown")
    features = np.ascontiguousarray(embeddings[used], dtype=np.float64)
    common = {"confounder_column": "center", "evaluation_design": "all"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of support below 1, which is among the scores
            ri = croma.RI.compute(features, manifest, k_candidates=[k], **common)
            mari = croma.MaRI.compute(features, manifest, k_candidates=[k], **common)
            margin = croma.CRoMa.compute(features, manifest, alpha=_TAIL, **common)
    except MemoryError:
        raise
    except Exception as error:  # another version asks for other columns
        if str(error).startswith(_NO_MARGIN):
            return None
        raise InputError(
            f"croma {version} takes these embeddings otherwise than 1.0.1: {' '.join(str(error).split())}",
            hint="pip install croma==1.0.1, or leave croma out",
        ) from error
    margins = np.full(len(embeddings), np.nan)
    margins[used] = margin.sample_values_aligned
    scores = CromaScores(
        version=version,
        k=k,
        ri=float(ri.value),
        mari=float(mari.value),
        croma=float(margin.value),
        ltm10=float(margin.ltm_alpha),
        undefined=1.0 - float(ri.support),
    )
    return CromaMargins(scores=scores, margins=margins)


def margin_drop(
    reference: CromaMargins, candidate: CromaMargins, groups: NDArray[np.int64] | None, *, seed: int = 0
) -> Interval:
    """Mean over the tiles of the margin that the candidate lost, paired, with its interval by slide."""
    both = np.isfinite(reference.margins) & np.isfinite(candidate.margins)
    lost = reference.margins[both] - candidate.margins[both]
    return mean_interval(lost, None if groups is None else np.unique(groups[both], return_inverse=True)[1], seed=seed)
