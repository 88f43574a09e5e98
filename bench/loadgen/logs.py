"""What LoadGen wrote: `mlperf_log_detail.txt` and `mlperf_log_accuracy.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError

DETAIL, ACCURACY = "mlperf_log_detail.txt", "mlperf_log_accuracy.json"
_LINE = ":::MLLOG "
_QUANTILES = ("50.00", "90.00", "99.00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """A performance run, by LoadGen's own clock.

    Attributes:
        valid: LoadGen's verdict on the run, by the durations that it was given.
        tiles: Tiles completed.
        tiles_per_s: Offline: tiles a second; SingleStream: 1 / mean latency.
        latency_ms: SingleStream: 50th, 90th and 99th percentile; None for Offline, where it says nothing.
    """

    valid: bool
    tiles: int
    tiles_per_s: float
    latency_ms: tuple[float, float, float] | None


def read_performance(folder: Path, *, offline: bool) -> Performance:
    """Read the log of a performance run.

    Raises:
        InputError: It lacks a result.
    """
    found = _detail(folder / DETAIL)
    try:
        valid = found["result_validity"] == "VALID"
        tiles = int(found["result_query_count"]) if not offline else int(found["generated_samples_per_query"])
        if offline:
            rate, latency = float(found["result_samples_per_second"]), None
        else:
            rate = 1e9 / float(found["result_mean_latency_ns"])
            low, middle, high = (float(found[f"result_{name}_percentile_latency_ns"]) / 1e6 for name in _QUANTILES)
            latency = (low, middle, high)
    except KeyError as error:
        raise InputError(f"{folder / DETAIL} lacks {error}", hint="use mlcommons-loadgen 5 or later") from error
    return Performance(valid=valid, tiles=tiles, tiles_per_s=rate, latency_ms=latency)


def read_accuracy(folder: Path, embed_dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The embeddings that LoadGen was given: tile numbers `(N,)`, in order, and `(N, embed_dim)`.

    A tile that was embedded several times is there as often.
    """
    entries = json.loads((folder / ACCURACY).read_bytes())
    entries.sort(key=lambda entry: int(entry["qsl_idx"]))
    indices = np.array([int(entry["qsl_idx"]) for entry in entries], np.int64)
    data = b"".join(bytes.fromhex(entry["data"]) for entry in entries)
    return indices, np.frombuffer(data, np.float32).reshape(len(entries), embed_dim)


def _detail(path: Path) -> dict[str, Any]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(_LINE):
            entry = json.loads(line.removeprefix(_LINE))
            found[entry["key"]] = entry["value"]
    return found
