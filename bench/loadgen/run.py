"""`atlas-bench loadgen`: MLPerf's own load generator (MLCommons) drives a bundle, and judges by its own clock and logs.

SingleStream and Offline, each in performance and in accuracy mode, and compliance test TEST01, which asks whether what
is computed while it is timed is what accuracy mode got. Tiles are those of the bundle's selftest.
"""

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from atlas_edge.bench.accuracy.agreement import tile_cosines
from atlas_edge.bench.conformance.subject import Figures, Subject
from atlas_edge.bench.loadgen.child import SCENARIOS, LoadGenAnswer, LoadGenRequest
from atlas_edge.bench.loadgen.logs import Performance, read_accuracy, read_performance
from atlas_edge.bench.machine import Machine, this_machine
from atlas_edge.bench.selftest.run import SOUND
from atlas_edge.cli import require_module
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.spec import Precision
from atlas_edge.system.child import run_module
from atlas_edge.system.hardware import installed_versions

SCHEMA_VERSION = 1
DISTRIBUTION = "mlcommons-loadgen"
# MLPerf's rules ask for runs of ten minutes, and for TEST01 within a tenth of the performance run.
RULE_S = 600.0
TEST01_MARGIN = 0.1
_CHILD = "atlas_edge.bench.loadgen.child"
_START_S = 900.0
_RUNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One of MLPerf's scenarios.

    Attributes:
        performance: The timed run.
        accuracy: Embeddings of accuracy mode, judged as `selftest` judges.
        test01_tiles: Embeddings that were logged while being timed.
        test01_worst: Smallest cosine of those to the ones of accuracy mode.
        test01_ratio: Throughput of that run over the performance run's.
        passed: Accuracy mode is as accurate as allowed, and what was computed while it was timed is the same.
    """

    performance: Performance
    accuracy: Figures
    test01_tiles: int
    test01_worst: float
    test01_ratio: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenReport:
    """The whole of `loadgen.json`.

    Attributes:
        loadgen: Its version.
        runtime: What executed the bundle.
        seconds: Least duration of a timed run.
        scenarios: By name.
    """

    schema_version: int
    created_utc: str
    bundle: str
    model: str
    target: str
    precision: str
    manifest_sha256: str
    loadgen: str
    runtime: str
    seconds: float
    machine: Machine
    scenarios: dict[str, Scenario]
    passed: bool


def run_loadgen(
    subject: Subject, folder: Path, *, seconds: float, device: str | None = None, threads: int | None = None
) -> LoadGenReport:
    """Run LoadGen in a process of its own.

    Args:
        subject: The bundle.
        folder: Where its logs go, `<scenario>/<run>` each.
        seconds: Least duration of each timed run.
        device: See `open_bundle`.
        threads: Inference threads.

    Raises:
        RuntimeMissing: LoadGen, the runtime or its device is not here.
        InputError: It ended without its logs.
    """
    require_module("mlperf_loadgen", extra="loadgen")
    request = LoadGenRequest(
        bundle=subject.bundle.resolve(), folder=folder.resolve(), seconds=seconds, device=device, threads=threads
    )
    try:
        done = run_module(_CHILD, stdin=request.model_dump_json(), timeout_s=_START_S + _RUNS * 10 * seconds)
    except subprocess.TimeoutExpired as error:
        raise InputError("LoadGen did not end", hint="give fewer --seconds") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise InputError(f"LoadGen ended with {done.returncode}: {last}", hint="atlas-bench selftest says more")
    answer = LoadGenAnswer.model_validate_json(done.stdout.splitlines()[-1])
    if answer.error:
        kind = next((kind for kind in (UsageError, RuntimeMissing) if kind.exit_code == answer.exit_code), InputError)
        raise kind(answer.error, hint=answer.hint)
    scenarios = {name: _scenario(subject, folder / name, offline=name == "Offline") for name in SCENARIOS}
    manifest = subject.manifest
    return LoadGenReport(
        schema_version=SCHEMA_VERSION,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=subject.bundle.resolve().name,
        model=manifest.encoder.name,
        target=manifest.target.value,
        precision=manifest.precision.value,
        manifest_sha256=subject.manifest_sha256,
        loadgen=installed_versions((DISTRIBUTION,)).get(DISTRIBUTION, "unknown"),
        runtime=answer.runtime,
        seconds=seconds,
        machine=this_machine(),
        scenarios=scenarios,
        passed=all(scenario.passed for scenario in scenarios.values()),
    )


def _scenario(subject: Subject, folder: Path, *, offline: bool) -> Scenario:
    dim = subject.manifest.encoder.embed_dim
    performance = read_performance(folder / "performance", offline=offline)
    timed = read_performance(folder / "TEST01", offline=offline)
    indices, found = read_accuracy(folder / "accuracy", dim)
    if not np.array_equal(indices, np.arange(len(subject.tiles))):
        raise InputError(f"LoadGen logged {len(indices)} of {len(subject.tiles)} tiles", hint="run it again")
    accuracy = subject.figures(found)
    logged, computed = read_accuracy(folder / "TEST01", dim)
    worst = float(tile_cosines(found[logged], computed).min())
    return Scenario(
        performance=performance,
        accuracy=accuracy,
        test01_tiles=len(logged),
        test01_worst=worst,
        test01_ratio=timed.tiles_per_s / performance.tiles_per_s,
        passed=accuracy.passed and 1.0 - worst <= SOUND[Precision.FP32],
    )
