"""Memory that runs out, of a GPU or of the machine, told with what needs less of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.errors import RuntimeMissing

# In what PyTorch raises as a plain RuntimeError: its CPU allocator's, and those of CUDA's libraries.
_SIGNS = ("not enough memory", "out of memory", "alloc_failed")


@contextmanager
def memory_explained(where: str, *, hint: str) -> Iterator[None]:
    """Explain memory that runs out.

    Args:
        where: Completes "memory ran out".
        hint: What needs less.

    Raises:
        RuntimeMissing: Memory ran out.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        plain = not isinstance(error, MemoryError | torch.OutOfMemoryError)
        if plain and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        raise RuntimeMissing(f"memory ran out {where}", hint=hint) from error


def more_parts(config: TrainConfig, views: int) -> str:
    """The hint for a step of so many views: more parts, or a smaller batch where a part is one view already."""
    if 2 * config.accumulate > views:
        return smaller_batch(config)
    return f"use --accumulate {2 * config.accumulate}: the same steps in more parts; a run that has begun goes on"


def smaller_batch(config: TrainConfig) -> str:
    """The hint for what views and teachers need: the batch to use, and what that means for a run that has begun."""
    half = max(config.batch // 2, 1)
    return f"use --batch {half}; a run that has begun cannot go on with another batch: add --overwrite"


def stored_features(config: TrainConfig) -> str:
    """The hint for what running teachers need."""
    return (
        f"compute the features of {' and of '.join(config.teachers)} once, with atlas-distill cache and a small "
        "--batch, and train from them; or choose a smaller --student"
    )
