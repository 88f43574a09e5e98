"""LoadGen's figures and ours of the same encoder, in turns of one process, as rows for the documentation.

    python tools/timing/loadgen_turns.py bundles/atlas2-demo-openvino-fp32 bundles/atlas2-demo-onnx-int8 --rounds 6

Offline: tiles a second; SingleStream: the median latency of one tile. A ratio is the geometric mean over the rounds of
LoadGen's figure over ours, with its 95 % interval; other programs slow both alike.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from atlas_edge.bench.conformance.subject import read_subject
from atlas_edge.bench.interval import geometric_mean_interval
from atlas_edge.bench.loadgen.child import SCENARIOS, run_scenario, warm_seconds
from atlas_edge.bench.loadgen.logs import read_performance
from atlas_edge.bench.speed.timing import offline_batch, timed_block, timed_call
from atlas_edge.bundle import open_bundle
from atlas_edge.cli import make_app, require_module, run_app

app = make_app("loadgen_turns", __doc__ or "")


@app.default
def loadgen_turns(
    *bundles: Path, rounds: int = 6, seconds: float = 8.0, batch: int = 8, threads: int | None = None
) -> None:
    """Print a table.

    Args:
        bundles: Bundle folders.
        rounds: Turns of each.
        seconds: How long a turn lasts, at least.
        batch: Tiles a call of ours, Offline, as `atlas-bench speed` takes it; LoadGen's calls hold 64.
        threads: Inference threads; the runtime's own choice when left out.
    """
    require_module("mlperf_loadgen", extra="loadgen")
    print("| bundle | scenario | LoadGen | atlas-bench speed | LoadGen / ours, 95 % |\n|---|---|---:|---:|---|")
    for bundle in bundles:
        for scenario, pairs in _turns(bundle, rounds, seconds, batch, threads).items():
            theirs, ours = np.array(pairs).T
            ratio = geometric_mean_interval(theirs / ours)
            unit = "tiles/s" if scenario == "Offline" else "ms"
            figures = " | ".join(f"{np.median(values):.1f} {unit}" for values in (theirs, ours))
            interval = f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
            print(f"| {bundle.resolve().name} | {scenario} | {figures} | {interval} |", flush=True)


def _turns(
    bundle: Path, rounds: int, seconds: float, batch: int, threads: int | None
) -> dict[str, list[tuple[float, float]]]:
    """Scenario -> LoadGen's figure and ours, round by round; who begins changes."""
    tiles = read_subject(bundle).tiles
    encoder = open_bundle(bundle, threads=threads)
    found: dict[str, list[tuple[float, float]]] = {scenario: [] for scenario in SCENARIOS}
    with tempfile.TemporaryDirectory() as logs:
        for number in range(rounds):
            for scenario in SCENARIOS:
                offline = scenario == "Offline"
                per_tile_s = warm_seconds(encoder, tiles, one_by_one=not offline)
                taken = offline_batch(encoder, batch) if offline else 1
                call, folder = timed_call(encoder, tiles, taken), Path(logs) / str(number)
                first = timed_block(call, seconds) if number % 2 else []
                run_scenario(encoder, tiles, scenario, "performance", per_tile_s, seconds=seconds, folder=folder)
                times = first or timed_block(call, seconds)
                theirs = read_performance(folder / scenario / "performance", offline=offline)
                if theirs.latency_ms is None:
                    found[scenario].append((theirs.tiles_per_s, taken * len(times) / sum(times)))
                else:
                    found[scenario].append((theirs.latency_ms[0], 1e3 * float(np.median(times))))
    encoder.close()
    return found


if __name__ == "__main__":
    sys.exit(run_app(app))
