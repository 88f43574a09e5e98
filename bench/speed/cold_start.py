"""Cold start and peak memory: a new process opens a model and embeds its first tile.

`python -m atlas_edge.bench.speed.cold_start MODEL THREADS CACHE BATCH` is that process (THREADS, CACHE may be empty);
it prints one JSON object.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas_edge.errors import AtlasError, InputError, RuntimeMissing
from atlas_edge.system.hardware import peak_memory_bytes

_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Medians over fresh processes; the files are in the page cache from the second process on.

    Attributes:
        open_ms: Opening: hashes checked, runtime imported, model read.
        first_embedding_ms: From the start of opening to the first tile's embedding in memory.
        cached_first_embedding_ms: The same with the runtime's compiled-model cache filled; None without such a cache.
        peak_memory_bytes: Most memory that the process held, interpreter and libraries included, one tile at a time.
        processes: Fresh processes a figure.
        offline_peak_memory_bytes: The same once it had embedded a call of the Offline scenario, too.
        offline_batch: Tiles of that call.
    """

    open_ms: float
    first_embedding_ms: float
    cached_first_embedding_ms: float | None
    peak_memory_bytes: int
    processes: int
    offline_peak_memory_bytes: int | None = None
    offline_batch: int | None = None


def cold_start(
    model: str, *, threads: int | None = None, processes: int = 3, batch: int = 8, device: str | None = None
) -> ColdStart:
    """Measure a model in fresh processes.

    Args:
        model: Bundle folder or model name.
        threads: Inference threads; the runtime's own choice when None.
        processes: Fresh processes a figure.
        batch: Tiles of the call that fills the memory; rounded up as in the Offline scenario.
        device: See `open_bundle`.

    Raises:
        InputError: The process failed, or took longer than five minutes; its message is passed on.
        RuntimeMissing: It lacked a device or runtime.
    """
    plain = [_fresh(model, threads, None, batch, device) for _ in range(processes)]
    cached = None
    with tempfile.TemporaryDirectory() as cache:
        if _fresh(model, threads, cache, batch, device)["cache_used"]:
            cached = [_fresh(model, threads, cache, batch, device)["first_embedding_ms"] for _ in range(processes)]
    return ColdStart(
        open_ms=float(np.median([run["open_ms"] for run in plain])),
        first_embedding_ms=float(np.median([run["first_embedding_ms"] for run in plain])),
        cached_first_embedding_ms=None if cached is None else float(np.median(cached)),
        peak_memory_bytes=int(np.median([run["peak_memory_bytes"] for run in plain])),
        processes=processes,
        offline_peak_memory_bytes=int(np.median([run["offline_peak_memory_bytes"] for run in plain])),
        offline_batch=int(plain[0]["offline_batch"]),
    )


def _fresh(
    model: str, threads: int | None, cache: str | None, batch: int = 8, device: str | None = None
) -> dict[str, float]:
    arguments = [model, "" if threads is None else str(threads), cache or "", str(batch), device or ""]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "atlas_edge.bench.speed.cold_start", *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{model} gave no embedding within {_TIMEOUT_S} s in a fresh process",
            hint="leave --cold-start out, or give it --threads and a machine that is not busy",
        ) from error
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        kind = RuntimeMissing if child.returncode == RuntimeMissing.exit_code else InputError
        raise kind(f"{model} failed in a fresh process: {lines[-1]}", hint="run it with atlas-embed to see more")
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def _measure(model: str, threads: int | None, cache: Path | None, batch: int, device: str | None) -> dict[str, float]:
    from atlas_edge.bench.speed.timing import offline_batch
    from atlas_edge.models.load import load_encoder

    started = time.perf_counter()
    encoder = load_encoder(model, threads=threads, cache_dir=cache, device=device)
    opened = time.perf_counter()
    side = encoder.spec.tile_px
    encoder.encode(np.full((1, side, side, 3), 128, np.uint8))
    ended = time.perf_counter()
    single_peak = peak_memory_bytes()
    size = offline_batch(encoder, batch)
    encoder.encode(np.full((size, side, side, 3), 128, np.uint8))
    return {
        "open_ms": 1e3 * (opened - started),
        "first_embedding_ms": 1e3 * (ended - started),
        "peak_memory_bytes": single_peak,
        "offline_peak_memory_bytes": peak_memory_bytes(),
        "offline_batch": size,
        "cache_used": cache is not None and any(cache.iterdir()),
    }


def _main(arguments: list[str]) -> int:
    model, threads, cache, batch, device = arguments
    try:
        found = _measure(
            model, int(threads) if threads else None, Path(cache) if cache else None, int(batch), device or None
        )
    except AtlasError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
