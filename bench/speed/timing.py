"""Speed, measured so that it can be trusted: steady state, alternated with a reference, raw samples kept.

What is timed: from uint8 tiles in host memory to float32 embeddings in host memory, as `Encoder.encode` does it,
transfers to and from a device included; reading and decoding of images are not.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.bench.speed.figures import EncoderSpeed, Latency, SpeedReport, Throughput
from atlas_edge.bench.speed.processor_load import ProcessorLoad
from atlas_edge.bench.speed.warnings import speed_warnings
from atlas_edge.encoder import Encoder
from atlas_edge.errors import UsageError
from atlas_edge.tiles import fit_tile

__all__ = [
    "EncoderSpeed",
    "Latency",
    "SpeedReport",
    "Throughput",
    "at_size",
    "offline_batch",
    "paired_speed",
    "timed_block",
    "timed_call",
]

TIMED_REGION = (
    "uint8 tiles in host memory -> float32 embeddings in host memory: host copies, normalisation, inference and device "
    "transfers included; reading and decoding images excluded"
)

_STEADY_WINDOW = 5
# A call that lasts so long is an average by itself: two of them make a window.
_LONG_CALL_SECONDS, _LONG_WINDOW = 0.5, 2
_STEADY_CHANGE = 0.05
_WARMUP_SECONDS = 10.0
_PAUSE_SECONDS = 0.01
_LONG_BLOCK_SECONDS = 1.0


def paired_speed(
    encoders: Mapping[str, Encoder],
    tiles: NDArray[np.uint8],
    *,
    reference: str,
    batch: int = 8,
    rounds: int = 10,
    block_seconds: float = 0.5,
) -> SpeedReport:
    """Measure encoders in turns and compare each with the reference.

    Every round gives each encoder one block of each scenario, in an order that rotates, so a drift of the machine
    (3x within minutes is common) meets all of them alike. A ratio is the geometric mean of the rounds' ratios.

    Args:
        encoders: Name -> encoder; the reference is among them.
        tiles: `(N, tile_px, tile_px, 3)` uint8, N >= `batch`; they are used again and again. Encoders of another
            tile size get them resampled.
        reference: Name of the reference.
        batch: Tiles a call in the Offline scenario; an encoder whose graph takes a fixed batch, or that runs several
            streams, gets the next larger number that leaves none of it idle (`offline_batch`).
        rounds: Turns of every encoder.
        block_seconds: How long one turn lasts, at least (one call may last longer).

    Raises:
        UsageError: The reference is not among the encoders, fewer tiles than a batch, or fewer than two rounds.
    """
    _check(encoders, tiles, reference, batch, rounds)
    sized = {name: at_size(tiles, encoder.spec.tile_px) for name, encoder in encoders.items()}
    batches = {name: offline_batch(encoder, batch) for name, encoder in encoders.items()}
    singles = {name: timed_call(encoder, sized[name], 1) for name, encoder in encoders.items()}
    batched = {name: timed_call(encoder, sized[name], batches[name]) for name, encoder in encoders.items()}
    warmups = {name: _warm_up(batched[name], singles[name]) for name in encoders}
    # What was warm first may have gone cold while the others were warmed up: memory that is not used is taken back.
    for call in (*batched.values(), *singles.values()):
        call()
    latencies: dict[str, list[list[float]]] = {name: [] for name in encoders}
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    load = ProcessorLoad()
    for number in range(rounds):
        for name in _turns(list(encoders), number):
            latencies[name].append(timed_block(singles[name], block_seconds))
            calls = timed_block(batched[name], block_seconds)
            rates[name].append(batches[name] * len(calls) / sum(calls))
    shares = load.since()
    figures = {
        name: EncoderSpeed(
            runtime=encoder.runtime,
            latency=_latency(latencies[name]),
            throughput=_throughput(rates[name], batches[name]),
            latency_ratio=None if name == reference else _ratio(_medians(latencies, reference, name)),
            throughput_ratio=None if name == reference else _ratio((rates[name], rates[reference])),
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
        warnings=speed_warnings(encoders, figures, shares),
    )


def offline_batch(encoder: Encoder, batch: int) -> int:
    """Tiles that one call gets in the Offline scenario: at least `batch`, and whole batches for every stream.

    A graph with a fixed batch would otherwise compute padding, and a second stream would wait.
    """
    able = encoder.capabilities
    # Two batches a stream: while one is computed the next is queued, as when a slide is embedded.
    unit = (able.batch or 1) * (1 if able.streams == 1 else 2 * able.streams)
    return -(-batch // unit) * unit


def timed_call(encoder: Encoder, tiles: NDArray[np.uint8], batch: int) -> Callable[[], float]:
    """A function that encodes the next `batch` tiles, and again from the first, and returns the seconds it took."""
    count = max(1, len(tiles) // batch)
    # Batches are cut before the clock starts: a copy of pixels is not inference.
    batches = [tiles[np.arange(number * batch, (number + 1) * batch) % len(tiles)] for number in range(count)]
    position = 0

    def call() -> float:
        nonlocal position
        pixels = batches[position % len(batches)]
        position += 1
        started = time.perf_counter()
        encoder.encode(pixels)
        return time.perf_counter() - started

    return call


def timed_block(call: Callable[[], float], seconds: float) -> list[float]:
    """Times of the calls that fill a block of `seconds`, one discarded call before them unless it is a long one."""
    # Worker threads of the encoder before may still spin, and caches hold its weights: pause, and discard one call.
    # A call of a second or more has made up for both many times over.
    time.sleep(_PAUSE_SECONDS)
    first = call()
    times = [first] if first >= max(seconds, _LONG_BLOCK_SECONDS) else []
    while not times or sum(times) < seconds:
        times.append(call())
    return times


def _check(encoders: Mapping[str, Encoder], tiles: NDArray[np.uint8], reference: str, batch: int, rounds: int) -> None:
    if reference not in encoders:
        raise UsageError(f"reference {reference!r} is not among the encoders {sorted(encoders)}")
    if batch < 1 or len(tiles) < batch:
        raise UsageError(f"{len(tiles)} tiles for a batch of {batch}", hint="give more tiles or a smaller --batch")
    if rounds < 2:
        raise UsageError(f"--rounds {rounds}: an interval needs at least 2 rounds", hint="use --rounds 10")


def at_size(tiles: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    """Tiles `(N, tile_px, tile_px, 3)`, resampled where they have another size."""
    if tiles.shape[1] == tile_px:
        return tiles
    return np.stack([fit_tile(tile, tile_px, "resize", name="timed tile") for tile in tiles])


def _warm_up(*calls: Callable[[], float]) -> tuple[int, bool]:
    """Call until the medians of two successive windows differ by less than 5 %, for each scenario."""
    total, all_steady = 0, True
    for call in calls:
        times: list[float] = []
        deadline = time.perf_counter() + _WARMUP_SECONDS
        steady = False
        while not steady and (time.perf_counter() < deadline or len(times) < 2):
            times.append(call())
            window = _LONG_WINDOW if times[-1] > _LONG_CALL_SECONDS else _STEADY_WINDOW
            if len(times) >= 2 * window:
                before = float(np.median(times[-2 * window : -window]))
                steady = abs(float(np.median(times[-window:])) - before) < _STEADY_CHANGE * before
        total += len(times)
        all_steady &= steady
    return total, all_steady


def _turns(names: list[str], number: int) -> list[str]:
    # All positions, then all positions with the neighbours swapped.
    shift = number % len(names)
    turned = names[shift:] + names[:shift]
    return turned if number // len(names) % 2 == 0 else turned[::-1]


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
        variation=float(samples.std() / samples.mean()),
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


def _ratio(pair: tuple[list[float], list[float]]) -> Interval:
    return geometric_mean_interval(np.array(pair[0]) / np.array(pair[1]))
