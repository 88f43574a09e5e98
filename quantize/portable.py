"""Files that every processor computes alike, in any OpenVINO or ONNX Runtime; see `Recipe.portable`."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError

_LARGEST = 64


def check_portable(weights: Iterable[NDArray[np.integer]]) -> None:
    """Look at the integers that a file holds.

    Args:
        weights: Less their zero points.

    Raises:
        InputError: Two products of one of them with a byte do not fit into 16 bits.
    """
    largest = max((int(np.abs(values.astype(np.int32)).max()) for values in weights if values.size), default=0)
    if largest > _LARGEST:
        raise InputError(
            f"the quantized file is not portable: a weight is {largest}, expected at most {_LARGEST}",
            hint="export it without --portable, or leave the layer in floating point by a recipe with --exclude",
        )
