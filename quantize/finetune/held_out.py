"""Which tiles train, and which judge: of slides that nothing is trained on, where slides are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import UsageError


@dataclass(frozen=True, slots=True)
class Parting:
    """Positions of the tiles that train, and of those that judge."""

    trained: NDArray[np.int64]
    held: NDArray[np.int64]
    by: Literal["slide", "tile"]


def part_tiles(count: int, slides: Sequence[str] | None, *, held_out: int, batch: int, seed: int) -> Parting:
    """Hold tiles out of `count`: of whole slides, or one by one where slides are unknown or too few tiles would train.

    Args:
        count: Tiles in all.
        slides: Slide of each tile.
        held_out: Tiles to hold out.
        batch: The least number that must train.
        seed: Decides between slides of one size.

    Raises:
        UsageError: Too few tiles.
    """
    parting = None if slides is None else _part_slides(np.asarray(slides), held_out, seed)
    if parting is None:
        held = np.unique(np.linspace(0, count - 1, held_out).astype(int))
        parting = Parting(np.setdiff1d(np.arange(count), held), held, "tile")
    if len(parting.held) < held_out or len(parting.trained) < batch:
        raise UsageError(
            f"{count} tiles are too few to hold {held_out} out and train on batches of {batch}",
            hint="give more tiles",
        )
    return parting


def _part_slides(slides: NDArray[np.str_], held_out: int, seed: int) -> Parting | None:
    """The smallest slides judge, chance deciding among equals; None where fewer than half of the tiles would train."""
    names, sizes = np.unique(slides, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(names))
    order = drawn[np.argsort(sizes[drawn], kind="stable")]
    few = 1 + int(np.searchsorted(np.cumsum(sizes[order]), held_out))
    judging = np.isin(slides, names[order[:few]])
    trained, candidates = np.flatnonzero(~judging), np.flatnonzero(judging)
    if 2 * len(trained) < len(slides):
        return None
    held = candidates[np.linspace(0, len(candidates) - 1, held_out).astype(int)]
    return Parting(trained, held, "slide")
