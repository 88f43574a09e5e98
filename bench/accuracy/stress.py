"""Stain and scanner stress: does quantization make an encoder more fragile than its reference?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import tile_cosines
from atlas_edge.bench.accuracy.probe import Probe
from atlas_edge.bench.interval import Interval, class_mean_interval, mean_interval
from atlas_edge.tiles.shifts import SCANNERS, as_scanner, blur, recompress, shift_hed

Shift = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

# Our choice of strengths: the scanners as measured, stains by a quarter, a JPEG below what scanners write by default,
# and a focus error that is visible but would not be rescanned.
STRESSES: Mapping[str, Shift] = MappingProxyType(
    {
        **{f"scanner {name}": partial(as_scanner, scanner=name) for name in SCANNERS},
        "haematoxylin +25 %": partial(shift_hed, haematoxylin=1.25),
        "eosin -25 %": partial(shift_hed, eosin=0.75),
        "JPEG quality 40": partial(recompress, quality=40),
        "blur 1.2 px": partial(blur, radius_px=1.2),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StressResult:
    """One shift of the tiles, seen by the reference and by the candidate.

    Attributes:
        stress: Name of the shift.
        tiles: Tiles.
        reference_cosine: Mean cosine of the reference's embeddings of shifted and unshifted tiles: how far it moves.
        candidate_cosine: The same of the candidate.
        extra_movement: Mean over tiles of reference's cosine minus candidate's: above 0 the candidate moves further.
        agreement_p1: 1st percentile of the cosine between both encoders' embeddings of the shifted tiles.
        drop_pp: Balanced accuracy lost by the candidate on the shifted tiles, probe fitted on the reference's
            unshifted embeddings, percentage points; None without labels.
        more_fragile: The interval of `extra_movement` lies above 0 and it exceeds a tenth of the reference's movement.
    """

    stress: str
    tiles: int
    reference_cosine: float
    candidate_cosine: float
    extra_movement: Interval
    agreement_p1: float
    drop_pp: Interval | None
    more_fragile: bool


def stress_result(
    stress: str,
    *,
    reference: tuple[NDArray[np.float32], NDArray[np.float32]],
    candidate: tuple[NDArray[np.float32], NDArray[np.float32]],
    probe: Probe | None = None,
    labels: NDArray[np.str_] | None = None,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> StressResult:
    """Compare how far both encoders move.

    Args:
        stress: Name of the shift.
        reference: `(N, D)` embeddings of the unshifted and of the shifted tiles by the reference.
        candidate: The same by the candidate.
        probe: Fitted on the reference's embeddings.
        labels: `(N,)` classes, for the probe.
        groups: `(N,)` group numbers.
        seed: Seed of the bootstrap.
    """
    reference_moved, candidate_moved = tile_cosines(*reference), tile_cosines(*candidate)
    extra = mean_interval(reference_moved - candidate_moved, groups, seed=seed)
    drop = None
    if probe is not None and labels is not None:
        truth = np.searchsorted(np.asarray(probe.classes), labels)
        right = [
            (probe.probabilities(side[1]).argmax(axis=1) == truth).astype(np.float64) for side in (reference, candidate)
        ]
        drop = class_mean_interval(right[0] - right[1], truth, groups, seed=seed).scaled(100)
    return StressResult(
        stress=stress,
        tiles=len(reference_moved),
        reference_cosine=float(reference_moved.mean()),
        candidate_cosine=float(candidate_moved.mean()),
        extra_movement=extra,
        agreement_p1=float(np.quantile(tile_cosines(reference[1], candidate[1]), 0.01)),
        drop_pp=drop,
        more_fragile=extra.low > 0 and extra.estimate > 0.1 * float(1 - reference_moved.mean()),
    )
