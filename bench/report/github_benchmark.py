"""Lists for github-action-benchmark: `customSmallerIsBetter` and `customBiggerIsBetter`, as it takes one way a file."""

import json
import math
from typing import Any

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.report.schema import Report

SMALLER_FILE = "benchmark-smaller-is-better.json"
BIGGER_FILE = "benchmark-bigger-is-better.json"

Entry = dict[str, Any]


def smaller_is_better(report: Report) -> str:
    """Latency, drops, changed predictions, distance from the reference, sizes, cold start, memory, energy."""
    found: list[Entry] = []
    for name, speed in ({} if report.speed is None else report.speed.encoders).items():
        latency = speed.latency
        found.append(_entry(f"{name}: latency p50", "ms", latency.p50_ms, f"± {latency.sigma_ms:.2f}"))
        found.append(_entry(f"{name}: latency p99", "ms", latency.p99_ms))
    for name, one in ({} if report.accuracy is None else report.accuracy.candidates).items():
        for drop in one.drops:
            what = f"{name}: {drop.method}{' refitted' if drop.refitted else ''}"
            found.append(_entry(f"{what} drop", "pp", drop.drop_pp, _range(drop.interval)))
            found.append(_entry(f"{what} changed predictions", "%", 100 * drop.flips, _range(drop.flip_interval, 100)))
        if one.agreement is not None:
            found.append(_entry(f"{name}: 1 - cosine p1", "1", 1 - one.agreement.cosine_p1))
    for name, facts in report.encoders.items():
        if facts.size_bytes is not None:
            found.append(_entry(f"{name}: model files", "MB", facts.size_bytes / 1e6))
    for name, cold in report.cold_starts.items():
        found.append(_entry(f"{name}: cold start", "ms", cold.first_embedding_ms))
        found.append(_entry(f"{name}: peak memory", "MB", cold.peak_memory_bytes / 1e6))
    for name, energy in report.energies.items():
        found.append(_entry(f"{name}: energy of a thousand tiles", "J", energy.joules_per_thousand_tiles))
    return _text(found)


def bigger_is_better(report: Report) -> str:
    """Throughput, ratios to the reference, accuracy, cosine, robustness, fraction of the peak."""
    found: list[Entry] = []
    for name, speed in ({} if report.speed is None else report.speed.encoders).items():
        throughput = speed.throughput
        spread = f"± {throughput.variation * throughput.tiles_per_s:.2f}"
        found.append(_entry(f"{name}: throughput", "tiles/s", throughput.tiles_per_s, spread))
        if speed.throughput_ratio is not None:
            ratio = speed.throughput_ratio
            found.append(_entry(f"{name}: throughput over the reference", "x", ratio.estimate, _range(ratio)))
    accuracy = report.accuracy
    for name, scores in ({} if accuracy is None else accuracy.scores).items():
        if scores.linear is not None and scores.knn is not None:
            found.append(_entry(f"{name}: linear probe", "%", 100 * scores.linear))
            found.append(_entry(f"{name}: kNN", "%", 100 * scores.knn))
        if scores.robustness is not None:
            found.append(_entry(f"{name}: robustness index", "1", scores.robustness.index))
    for name, one in ({} if accuracy is None else accuracy.candidates).items():
        if one.agreement is not None:
            interval = one.agreement.cosine_p1_interval
            # -1: too few tiles for a lower end.
            ends = _range(interval) if interval.low > -1 else None
            found.append(_entry(f"{name}: cosine p1", "1", interval.estimate, ends))
    for name, peak in ({} if report.roofline is None else report.roofline.encoders).items():
        fraction = peak.fraction.scaled(100)
        found.append(_entry(f"{name}: of the {peak.precision} peak", "%", fraction.estimate, _range(fraction)))
    return _text(found)


def _entry(name: str, unit: str, value: float, spread: str | None = None) -> Entry:
    entry: Entry = {"name": name, "unit": unit, "value": round(value, 6)}
    return entry if spread is None else {**entry, "range": spread}


def _range(interval: Interval, factor: float = 1.0) -> str | None:
    half = factor * (interval.high - interval.low) / 2
    return f"± {half:.4g}" if math.isfinite(half) else None


def _text(entries: list[Entry]) -> str:
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
