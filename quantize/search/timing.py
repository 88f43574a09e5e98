"""Throughput of several plans that take turns in one process."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.bench.speed.timing import paired_speed
from atlas_edge.encoder import Encoder

ROUNDS = 5
BATCH = 8
_BLOCK_SECONDS = 0.25


class PlanSpeed(BaseModel):
    """One plan's throughput.

    Attributes:
        tiles_per_s: Mean of the rounds.
        ratio: Over full precision, with its interval over rounds.
        rounds_tiles_per_s: Every round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles_per_s: float
    ratio: Interval
    rounds_tiles_per_s: tuple[float, ...]


def race(
    encoders: Mapping[str, Encoder], tiles: NDArray[np.uint8], *, reference: str, rounds: int = ROUNDS
) -> dict[str, PlanSpeed]:
    """Time all encoders against the reference, one block each a round (see `bench.speed`).

    Args:
        encoders: Name -> encoder, the reference among them.
        tiles: `(N, tile_px, tile_px, 3)` uint8.
        reference: Name of the full-precision encoder.
        rounds: Turns of every encoder.
    """
    report = paired_speed(
        encoders,
        tiles,
        reference=reference,
        batch=min(BATCH, len(tiles)),
        rounds=rounds,
        block_seconds=_BLOCK_SECONDS,
    )
    one = Interval(estimate=1.0, low=1.0, high=1.0, units=rounds, unit="round")
    return {
        name: PlanSpeed(
            tiles_per_s=figures.throughput.tiles_per_s,
            ratio=figures.throughput_ratio or one,
            rounds_tiles_per_s=figures.throughput.rounds_tiles_per_s,
        )
        for name, figures in report.encoders.items()
    }


def faster_than(first: PlanSpeed, second: PlanSpeed) -> Interval:
    """Throughput of the first over that of the second, round by round of the same run."""
    rates = np.array([first.rounds_tiles_per_s, second.rounds_tiles_per_s])
    return geometric_mean_interval(rates[0] / rates[1])
