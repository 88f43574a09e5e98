"""What a timing run found."""

from dataclasses import dataclass

from atlas_edge.bench.interval import Interval


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
        variation: Coefficient of variation, σ over mean.
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
    variation: float
    min_ms: float
    max_ms: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Offline (MLPerf): all tiles are there at once, batched as the encoder likes them.

    Attributes:
        tiles_per_s: Tiles over the whole measured time.
        batch: Tiles a call of `encode`, which fills whole batches of the graph on all of its streams.
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
