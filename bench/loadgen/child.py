"""LoadGen around a bundle, as a process of its own: it calls back from its threads, where Ctrl-C may not raise."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from atlas_edge.bench.conformance.subject import read_subject
from atlas_edge.bundle import open_bundle
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError

SCENARIOS = ("SingleStream", "Offline")
# MLPerf's: accuracy mode embeds every tile once; TEST01 logs what performance mode computes, too.
RUNS = ("performance", "accuracy", "TEST01")
_CALL = 64
_WARM_UP_S = 1.0
_SPARE = 1.5


class LoadGenRequest(BaseModel):
    """What to run; paths are absolute, logs go to `folder/<scenario>/<run>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    folder: Path
    seconds: float
    device: str | None
    threads: int | None


class LoadGenAnswer(BaseModel):
    """What came of it: what executed the bundle, or why nothing did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str = ""
    exit_code: int = 0
    error: str = ""
    hint: str | None = None


def main() -> None:
    """Read a `LoadGenRequest` from stdin, run all of it, and print a `LoadGenAnswer` as the last line."""
    request = LoadGenRequest.model_validate_json(sys.stdin.read())
    try:
        answer = LoadGenAnswer(runtime=_run_all(request))
    except AtlasError as error:
        answer = LoadGenAnswer(exit_code=error.exit_code, error=error.message, hint=error.hint)
    print("\n" + answer.model_dump_json())


def _run_all(request: LoadGenRequest) -> str:
    # It reads a file audit.config of the working folder, whosever that is.
    request.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(request.folder)
    tiles = read_subject(request.bundle).tiles
    encoder = open_bundle(request.bundle, device=request.device, threads=request.threads)
    try:
        for scenario in SCENARIOS:
            per_tile_s = warm_seconds(encoder, tiles, one_by_one=scenario == "SingleStream")
            for run in RUNS:
                run_scenario(encoder, tiles, scenario, run, per_tile_s, seconds=request.seconds, folder=request.folder)
    finally:
        encoder.close()
    return encoder.runtime


def warm_seconds(encoder: Encoder, tiles: NDArray[np.uint8], *, one_by_one: bool) -> float:
    """Seconds a tile, once the encoder is warm."""
    piece = tiles[:1] if one_by_one else tiles[:_CALL]
    encoder.encode(piece)
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < _WARM_UP_S:
        encoder.encode(piece)
        calls += 1
    return (time.perf_counter() - started) / (calls * len(piece))


def run_scenario(
    encoder: Encoder,
    tiles: NDArray[np.uint8],
    scenario: str,
    run: str,
    per_tile_s: float,
    *,
    seconds: float,
    folder: Path,
) -> None:
    """One of LoadGen's runs; its logs go to `folder/<scenario>/<run>`.

    Args:
        encoder: Open and warm.
        tiles: `(N, tile_px, tile_px, 3)` uint8.
        scenario: One of `SCENARIOS`.
        run: One of `RUNS`.
        per_tile_s: From `warm_seconds`.
        seconds: Least duration of a timed run.
        folder: Of the logs.
    """
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.AccuracyOnly if run == "accuracy" else loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1e3 * seconds)
    settings.min_query_count = 1 if scenario == "Offline" else len(tiles)
    # It asks for as many tiles as the shortest duration takes by this; a machine that runs faster then ends early.
    settings.offline_expected_qps = max(_SPARE / per_tile_s, len(tiles) / seconds)
    settings.single_stream_expected_latency_ns = max(round(1e9 * per_tile_s), 1)
    settings.accuracy_log_probability = 1.0 if run == "TEST01" else 0.0
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder / scenario / run), False
    Path(output.outdir).mkdir(parents=True)
    log = loadgen.LogSettings()
    log.log_output, log.enable_trace = output, False
    errors: list[BaseException] = []
    system = loadgen.ConstructSUT(_answering(loadgen, encoder, tiles, errors), lambda: None)
    library = loadgen.ConstructQSL(len(tiles), len(tiles), lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, log)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if errors:
        raise errors[0]


def _answering(
    loadgen: Any, encoder: Encoder, tiles: NDArray[np.uint8], errors: list[BaseException]
) -> Callable[[Sequence[Any]], None]:
    def answer(samples: Sequence[Any]) -> None:
        for start in range(0, len(samples), _CALL):
            asked = samples[start : start + _CALL]
            found = np.zeros((len(asked), encoder.spec.embed_dim), np.float32)
            try:
                if not errors:
                    found = encoder.encode(tiles[[sample.index for sample in asked]])
            except BaseException as error:  # it must not pass through LoadGen, which waits for every answer
                errors.append(error)
            size = found[0].nbytes
            loadgen.QuerySamplesComplete(
                [
                    loadgen.QuerySampleResponse(sample.id, row.ctypes.data, size)
                    for sample, row in zip(asked, found, strict=True)
                ]
            )

    return answer


if __name__ == "__main__":
    main()
