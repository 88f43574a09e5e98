"""One embedding for a whole slide, from those of its tiles."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

_MOST_STEPS = 64
_SMALL_STEP = 1e-5  # of the mean distance

Values = NDArray[np.float64]
Rows = Callable[[], Iterator[NDArray[np.float32]]]


def mean_of(rows: Rows) -> NDArray[np.float32]:
    """Mean of the tiles' embeddings, `(D,)` float32: what TRIDENT calls `mean-ENCODER`.

    Args:
        rows: Embeddings, `(n, D)` some at a time, one tile at least; begins anew at each call.
    """
    return _mean(rows).astype(np.float32)


def geometric_median_of(rows: Rows) -> NDArray[np.float32]:
    """The point whose distances to the tiles' embeddings add up to least, `(D,)` float32.

    Fewer than half of the tiles, however far off (folds, pen, necrosis), cannot carry it away as they do the mean.
    Weiszfeld's iteration y <- sum(x / |x - y|) / sum(1 / |x - y|), held where y meets a tile as Vardi and Zhang, The
    multivariate L1-median and associated data depth (PNAS 97, 2000), equation 2.6, have it.

    Args:
        rows: See `mean_of`.
    """
    found = _mean(rows)
    for _ in range(_MOST_STEPS):
        moved, mean_distance = _step(found, rows)
        far = float(np.linalg.norm(moved - found))
        found = moved
        if far <= _SMALL_STEP * mean_distance:
            break
    return found.astype(np.float32)


def _mean(rows: Rows) -> Values:
    sums = [(part.sum(axis=0, dtype=np.float64), len(part)) for part in rows()]
    return np.asarray(sum(total for total, _ in sums) / sum(count for _, count in sums))


def _step(at: Values, rows: Rows) -> tuple[Values, float]:
    """Where the iteration goes from a point, and the mean distance of the tiles to that point."""
    pull, weight = np.zeros_like(at), 0.0
    here = count = 0
    distances = 0.0
    for part in rows():
        away = part - at
        distance = np.sqrt(np.einsum("nd,nd->n", away, away))
        apart = distance > 0
        inverse = 1 / distance[apart]
        pull += inverse @ away[apart]
        weight += float(inverse.sum())
        here += int((~apart).sum())
        count += len(part)
        distances += float(distance.sum())
    force = float(np.linalg.norm(pull))
    # Tiles at the point itself hold it with a force of one each.
    held = 1.0 if force <= here else here / force
    return (at + (1 - held) * pull / weight if weight else at), distances / count
