"""Speed, measured so that it can be trusted: steady state, alternated with a reference, raw samples kept.

What is timed: from uint8 tiles in host memory to float32 embeddings in host memory, as `Encoder.encode` does it,
transfers to and from a device included; reading and decoding of images are not.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.encoder import Encoder
from atlas_edge.errors import UsageError

TIMED_REGION = (
    "uint8 tiles in host memory -> float32 embeddings in host memory: normalisation, inference, device transfers "
    "and padding to a fixed batch included; reading and decoding images excluded"
)

_STEADY_WINDOW = 5
_STEADY_CHANGE = 0.05
_WARMUP_SECONDS = 10.0
_BUSY_VARIATION = 0.10
_THROTTLED_SHARE = 0.85
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """SingleStream (MLPerf): one tile at a time, the next starts when the last has ended.

    Attributes:
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        sigma_ms: Standard deviation.
        min_ms: Smallest.
        max_ms: Largest.
        samples_ms: Every sample, in the order of measurement.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    sigma_ms: float
    min_ms: float
    max_ms: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Offline (MLPerf): all tiles are there at once, batched as the encoder likes them.

    Attributes:
        tiles_per_s: Tiles over the whole measured time.
        batch: Tiles a call.
        variation: Coefficient of variation of the rounds, 0-1.
        rounds_tiles_per_s: Every round, in the order of measurement.
    """

    tiles_per_s: float
    batch: int
    variation: float
    rounds_tiles_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpeed:
    """One encoder's figures.

    Attributes:
        runtime: What executed it.
        latency: SingleStream.
        throughput: Offline.
        latency_ratio: Reference's latency over this one's (above 1: faster), None for the reference itself.
        throughput_ratio: This one's throughput over the reference's (above 1: faster), None for the reference itself.
        warmup_calls: Calls until the times were steady.
        steady: Whether they became steady within the time allowed.
    """

    runtime: str
    latency: Latency
    throughput: Throughput
    latency_ratio: Interval | None
    throughput_ratio: Interval | None
    warmup_calls: int
    steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReport:
    """A comparison of encoders that took turns in one process.

    Attributes:
        reference: Name of the encoder that the ratios refer to.
        timed_region: What is inside the clock.
        encoders: Figures by name.
        rounds: How often every encoder had its turn.
        warnings: What makes the figures less certain, each with the option that mends it.
    """

    reference: str
    timed_region: str
    encoders: dict[str, EncoderSpeed]
    rounds: int
    warnings: tuple[str, ...]


def paired_speed(
    encoders: Mapping[str, Encoder],
    tiles: NDArray[np.uint8],
    *,
    reference: str,
    batch: int = 8,
    rounds: int = 10,
    block_seconds: float = 0.5,
    seed: int = 0,
) -> SpeedReport:
    """Measure encoders in turns and compare each with the reference.

    Every round gives each encoder one block of each scenario, in an order that rotates, so a drift of the machine
    (3x within minutes is common) meets all of them alike. A ratio is the geometric mean of the rounds' ratios.

    Args:
        encoders: Name -> encoder; the reference is among them.
        tiles: `(N, tile_px, tile_px, 3)` uint8, N >= `batch`; they are used again and again.
        reference: Name of the reference.
        batch: Tiles a call in the Offline scenario.
        rounds: Turns of every encoder.
        block_seconds: How long one turn lasts, at least (one call may last longer).
        seed: Seed of the bootstrap.

    Raises:
        UsageError: The reference is not among the encoders, fewer tiles than a batch, or fewer than two rounds.
    """
    _check(encoders, tiles, reference, batch, rounds)
    singles = {name: _caller(encoder, tiles, 1) for name, encoder in encoders.items()}
    batched = {name: _caller(encoder, tiles, batch) for name, encoder in encoders.items()}
    warmups = {name: _warm_up(batched[name], singles[name]) for name in encoders}
    latencies: dict[str, list[list[float]]] = {name: [] for name in encoders}
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for number in range(rounds):
        for name in _turns(list(encoders), number):
            latencies[name].append(_block(singles[name], block_seconds))
            calls = _block(batched[name], block_seconds)
            rates[name].append(batch * len(calls) / sum(calls))
    figures = {
        name: EncoderSpeed(
            runtime=encoder.runtime,
            latency=_latency(latencies[name]),
            throughput=_throughput(rates[name], batch),
            latency_ratio=None if name == reference else _ratio(_medians(latencies, reference, name), seed),
            throughput_ratio=None if name == reference else _ratio((rates[name], rates[reference]), seed),
            warmup_calls=warmups[name][0],
            steady=warmups[name][1],
        )
        for name, encoder in encoders.items()
    }
    return SpeedReport(
        reference=reference,
        timed_region=TIMED_REGION,
        encoders=figures,
        rounds=rounds,
        warnings=_warnings(figures),
    )


def _check(encoders: Mapping[str, Encoder], tiles: NDArray[np.uint8], reference: str, batch: int, rounds: int) -> None:
    if reference not in encoders:
        raise UsageError(f"reference {reference!r} is not among the encoders {sorted(encoders)}")
    if batch < 1 or len(tiles) < batch:
        raise UsageError(f"{len(tiles)} tiles for a batch of {batch}", hint="give more tiles or a smaller --batch")
    if rounds < 2:
        raise UsageError(f"--rounds {rounds}: an interval needs at least 2 rounds", hint="use --rounds 10")


def _caller(encoder: Encoder, tiles: NDArray[np.uint8], batch: int) -> Callable[[], float]:
    """A function that encodes the next batch and returns the seconds that it took."""
    starts = list(range(0, len(tiles) - batch + 1, batch))
    # Batches are cut before the clock starts: a copy of pixels is not inference.
    batches = [np.ascontiguousarray(tiles[start : start + batch]) for start in starts]
    position = 0

    def call() -> float:
        nonlocal position
        pixels = batches[position % len(batches)]
        position += 1
        started = time.perf_counter()
        encoder.encode(pixels)
        return time.perf_counter() - started

    return call


def _warm_up(*calls: Callable[[], float]) -> tuple[int, bool]:
    """Call until the medians of two successive windows differ by less than 5 %, for each scenario."""
    total, all_steady = 0, True
    for call in calls:
        times: list[float] = []
        deadline = time.perf_counter() + _WARMUP_SECONDS
        steady = False
        while not steady and (time.perf_counter() < deadline or len(times) < 2):
            times.append(call())
            if len(times) >= 2 * _STEADY_WINDOW:
                before = float(np.median(times[-2 * _STEADY_WINDOW : -_STEADY_WINDOW]))
                steady = abs(float(np.median(times[-_STEADY_WINDOW:])) - before) < _STEADY_CHANGE * before
        total += len(times)
        all_steady &= steady
    return total, all_steady


def _turns(names: list[str], number: int) -> list[str]:
    # All positions, then all positions with the neighbours swapped.
    shift = number % len(names)
    turned = names[shift:] + names[:shift]
    return turned if number // len(names) % 2 == 0 else turned[::-1]


def _block(call: Callable[[], float], seconds: float) -> list[float]:
    # Worker threads of the encoder before may still spin, and caches hold its weights: pause, and discard one call.
    time.sleep(_PAUSE_SECONDS)
    call()
    times: list[float] = []
    while not times or sum(times) < seconds:
        times.append(call())
    return times


def _latency(blocks: list[list[float]]) -> Latency:
    samples = np.array([value for block in blocks for value in block]) * 1e3
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, [50, 90, 95, 99]))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(samples.mean()),
        sigma_ms=float(samples.std()),
        min_ms=float(samples.min()),
        max_ms=float(samples.max()),
        samples_ms=tuple(round(float(value), 4) for value in samples),
    )


def _throughput(rates: list[float], batch: int) -> Throughput:
    values = np.array(rates)
    return Throughput(
        # Rounds last equally long, so tiles over time is the mean of their rates.
        tiles_per_s=float(values.mean()),
        batch=batch,
        variation=float(values.std() / values.mean()),
        rounds_tiles_per_s=tuple(round(float(value), 3) for value in values),
    )


def _medians(latencies: dict[str, list[list[float]]], reference: str, name: str) -> tuple[list[float], list[float]]:
    return (
        [float(np.median(block)) for block in latencies[reference]],
        [float(np.median(block)) for block in latencies[name]],
    )


def _ratio(pair: tuple[list[float], list[float]], seed: int) -> Interval:
    return geometric_mean_interval(np.array(pair[0]) / np.array(pair[1]), seed=seed)


def _warnings(figures: dict[str, EncoderSpeed]) -> tuple[str, ...]:
    found = []
    for name, speed in figures.items():
        if not speed.steady:
            found.append(f"{name}: times were not steady after warm-up; close other programs, or raise --rounds")
        if speed.throughput.variation > _BUSY_VARIATION:
            found.append(
                f"{name}: rounds vary by {speed.throughput.variation:.0%}; the ratio holds, the absolute figures are "
                "this machine's at this hour: close other programs, or raise --rounds and --block-seconds"
            )
        rates = np.array(speed.throughput.rounds_tiles_per_s)
        third = max(1, len(rates) // 3)
        if len(rates) >= 6 and np.median(rates[-third:]) < _THROTTLED_SHARE * np.median(rates[:third]):
            loss = 1 - np.median(rates[-third:]) / np.median(rates[:third])
            found.append(
                f"{name}: the last rounds were {loss:.0%} slower than the first: the machine throttles or got "
                "busy; let it cool, plug it in, or lower --threads"
            )
    return tuple(found)
