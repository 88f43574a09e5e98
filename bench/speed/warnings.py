"""What makes timings less certain, each with the option that mends it."""

from collections.abc import Iterable, Mapping

import numpy as np

from atlas_edge.bench.speed.figures import EncoderSpeed
from atlas_edge.bench.speed.processor_load import LoadShares
from atlas_edge.encoder import Encoder

_BUSY_VARIATION = 0.10
_THROTTLED_SHARE = 0.85
_LONG_TAIL = 2.0
_WIDE_RATIO = 0.10
_FEWEST_SAMPLES = 100
_OTHERS_SHARE = 0.05


def speed_warnings(
    encoders: Mapping[str, Encoder], figures: Mapping[str, EncoderSpeed], load: LoadShares | None = None
) -> tuple[str, ...]:
    """All warnings, those of the machine first.

    Args:
        encoders: Name -> encoder.
        figures: Name -> what was measured.
        load: Who used the processor meanwhile; None where it was not watched.
    """
    found = list(load_warnings(load))
    for name, speed in figures.items():
        found += [f"{name}: {text}" for text in (*_of_figures(speed), *_of_encoder(encoders[name]))]
    return tuple(found)


def load_warnings(load: LoadShares | None) -> Iterable[str]:
    """Those of the machine: who else used the processor."""
    if load is None:
        return
    if load.others > _OTHERS_SHARE:
        yield (
            f"other programs used {load.others:.0%} of the processor: go by the ratios' intervals, absolute figures "
            "are too low; close them and measure again"
        )
    if load.stolen > _OTHERS_SHARE:
        yield (
            f"the host gave {load.stolen:.0%} of the processor to other machines: measure on a machine of your own, or "
            "raise --rounds"
        )


def _of_figures(speed: EncoderSpeed) -> Iterable[str]:
    latency, throughput, ratio = speed.latency, speed.throughput, speed.throughput_ratio
    if not speed.steady:
        yield "times were not steady after warm-up; close other programs, or raise --rounds"
    if throughput.variation > _BUSY_VARIATION:
        yield (
            f"rounds vary by {throughput.variation:.0%}; go by the ratio's interval, the absolute figures are this "
            "machine's at this hour: close other programs, or raise --rounds and --block-seconds"
        )
    if len(latency.samples_ms) < _FEWEST_SAMPLES:
        yield (
            f"its 99th percentile is of {len(latency.samples_ms)} calls, no more than their slowest: raise --rounds or "
            f"--block-seconds for {_FEWEST_SAMPLES}"
        )
    if latency.p99_ms > _LONG_TAIL * latency.p50_ms:
        yield (
            f"one tile in a hundred takes {latency.p99_ms / latency.p50_ms:.1f} times the median or longer: leave a "
            "core to the system with --threads"
        )
    if ratio is not None and ratio.high - ratio.low > _WIDE_RATIO * ratio.estimate:
        yield f"its ratio is known to ±{(ratio.high - ratio.low) / ratio.estimate / 2:.0%} only: raise --rounds"
    yield from _of_throttling(throughput.rounds_tiles_per_s)


def _of_throttling(rounds: tuple[float, ...]) -> Iterable[str]:
    rates = np.array(rounds)
    third = max(1, len(rates) // 3)
    if len(rates) < 6:
        return
    first, last = float(np.median(rates[:third])), float(np.median(rates[-third:]))
    if last < _THROTTLED_SHARE * first:
        yield (
            f"the last rounds were {1 - last / first:.0%} slower than the first: the machine throttles or got busy; "
            "let it cool, plug it in, or lower --threads"
        )


def _of_encoder(encoder: Encoder) -> Iterable[str]:
    able = encoder.capabilities
    yield from able.notes
    if able.fixed_batch and able.batch != 1:
        yield (
            f"its graph takes {able.batch} tiles at a time, so one tile costs as much as {able.batch}: for latency, "
            "export it without --batch"
        )
