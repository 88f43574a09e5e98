"""Throughput over batch, streams and threads: which setting is fastest here, and which are as good."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.bench.speed.timing import offline_batch, timed_block, timed_call
from atlas_edge.encoder import Encoder
from atlas_edge.errors import UsageError

BATCHES = (1, 2, 4, 8, 16, 32)

# After so many rounds, in opposite orders, a setting below this share of the fastest gets no more turns.
_TRIAL_ROUNDS = 2
_HOPELESS = 0.7


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Setting:
    """How an encoder is run.

    Attributes:
        threads: Inference threads in all.
        streams: Calls side by side, each on its share of the threads; 1 where the runtime has no streams.
        batch: Tiles a call of the graph.
    """

    threads: int
    streams: int
    batch: int

    @property
    def words(self) -> str:
        """`batch 4, 2 streams, 2 threads`."""
        return f"batch {self.batch}, {_count(self.streams, 'stream')}, {_count(self.threads, 'thread')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One setting, measured.

    Attributes:
        setting: Which.
        tiles_per_s: Median of the rounds.
        rounds_tiles_per_s: Every round; two where it was far behind and given up.
        behind_best: The best setting's throughput over this one's, by the rounds of both; None for the best itself.
        as_good: Whether it was measured to the end and the interval of `behind_best` holds 1.
    """

    setting: Setting
    tiles_per_s: float
    rounds_tiles_per_s: tuple[float, ...]
    behind_best: Interval | None
    as_good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All settings of one encoder, which took turns.

    Attributes:
        points: In the order of threads, streams, batch.
        best: The fastest by median.
    """

    points: tuple[SweepPoint, ...]
    best: SweepPoint

    @property
    def lightest(self) -> SweepPoint:
        """Of the settings that are as good as the best, that with fewest tiles at once, then fewest threads."""

        def weight(point: SweepPoint) -> tuple[int, int]:
            return point.setting.batch * point.setting.streams, point.setting.threads

        return min((point for point in self.points if point.as_good), key=weight)


def sweep(
    open_setting: Callable[[Setting], Encoder],
    settings: Iterable[Setting],
    tiles: NDArray[np.uint8],
    *,
    rounds: int = 4,
    block_seconds: float = 0.3,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Measure the settings in turns.

    The best of many noisy medians looks better than it is: settings whose ratio to it could be 1 are marked as good,
    and the one to use is the lightest of them. Settings that are far behind after two rounds get no more turns.

    Args:
        open_setting: Opens the encoder with a setting; it is closed here.
        settings: Which to measure.
        tiles: `(N, tile_px, tile_px, 3)` uint8; used again and again.
        rounds: Turns of every setting.
        block_seconds: How long a turn lasts, at least.
        progress: Called with turns done and turns in all.

    Raises:
        UsageError: No setting, or fewer than two rounds.
    """
    wanted = sorted(set(settings))
    if not wanted or rounds < 2:
        raise UsageError(f"{len(wanted)} settings and {rounds} rounds to sweep", hint="use at least 1 and 2")
    encoders = {setting: open_setting(setting) for setting in wanted}
    try:
        sizes = {setting: offline_batch(encoder, setting.batch) for setting, encoder in encoders.items()}
        calls = {setting: timed_call(encoder, tiles, sizes[setting]) for setting, encoder in encoders.items()}
        for call in calls.values():
            call()  # compiles
        rates = _take_turns(calls, sizes, rounds=rounds, block_seconds=block_seconds, progress=progress)
    finally:
        for encoder in encoders.values():
            encoder.close()
    best = max(
        (setting for setting in wanted if len(rates[setting]) == rounds),
        key=lambda setting: float(np.median(rates[setting])),
    )
    points = tuple(_point(setting, rates[setting], rates[best], setting == best) for setting in wanted)
    return Sweep(points=points, best=points[wanted.index(best)])


def settings_of(*, threads: Iterable[int], batches: Iterable[int] = BATCHES, streams: bool = False) -> list[Setting]:
    """Every batch with every number of threads, and of streams where the runtime has them (powers of 2)."""
    found = []
    for count in threads:
        sides = [1]
        while streams and sides[-1] * 2 <= count:
            sides.append(sides[-1] * 2)
        found += [Setting(threads=count, streams=side, batch=batch) for side in sides for batch in batches]
    return found


def _take_turns(
    calls: Mapping[Setting, Callable[[], float]],
    sizes: Mapping[Setting, int],
    *,
    rounds: int,
    block_seconds: float,
    progress: Callable[[int, int], None] | None,
) -> dict[Setting, list[float]]:
    rates: dict[Setting, list[float]] = {setting: [] for setting in calls}
    running, done = list(calls), 0
    for number in range(rounds):
        if number == _TRIAL_ROUNDS:
            means = {setting: float(np.mean(found)) for setting, found in rates.items()}
            running = [setting for setting in running if means[setting] >= _HOPELESS * max(means.values())]
        for turn, setting in enumerate(running if number % 2 == 0 else running[::-1], 1):
            times = timed_block(calls[setting], block_seconds)
            rates[setting].append(sizes[setting] * len(times) / sum(times))
            done += 1
            if progress is not None:
                progress(done, done + len(running) * (rounds - number) - turn)
    return rates


def _point(setting: Setting, rates: list[float], best: list[float], is_best: bool) -> SweepPoint:
    shared = np.array(best[: len(rates)]) / np.array(rates)
    behind = None if is_best else geometric_mean_interval(shared)
    return SweepPoint(
        setting=setting,
        tiles_per_s=float(np.median(rates)),
        rounds_tiles_per_s=tuple(round(rate, 3) for rate in rates),
        behind_best=behind,
        as_good=behind is None or (len(rates) == len(best) and behind.low <= 1.0),
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
