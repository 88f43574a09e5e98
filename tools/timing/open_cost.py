"""What it costs to open a bundle: time to the first embedding, and memory; with another version, in one run.

Each figure is of a process of its own, and versions take turns, because machines drift; what counts is the ratio:

    python tools/timing/open_cost.py BUNDLE --against ../older-checkout
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import geometric_mean_interval
from atlas_edge.bundle import read_manifest
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import InputError, UsageError
from atlas_edge.system import hardware

HERE = Path(__file__).parents[2]
# The script uses nothing but what every version has.
_START = """
import sys, time
from pathlib import Path
import numpy as np
from atlas_edge import open_bundle

encoder = open_bundle(sys.argv[1], cache_dir=Path(sys.argv[2]) if sys.argv[2] else None)
side = encoder.spec.tile_px
encoder.encode(np.full((1, side, side, 3), 128, np.uint8))
print(time.time())
"""
_MEMORY = """
import json, sys
import numpy as np, psutil
from atlas_edge import open_bundle
from atlas_edge.bundle import read_manifest
from atlas_edge.runtimes.registry import runtime_of
from pathlib import Path

def held():
    return psutil.Process().memory_full_info().uss

runtime = runtime_of(read_manifest(Path(sys.argv[1])).target)
if runtime.module == "openvino":
    import openvino
    openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
else:
    __import__(runtime.module)
libraries = held()
encoder = open_bundle(sys.argv[1])
side = encoder.spec.tile_px
tiles = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), side, side, 3), dtype=np.uint8)
found = {"libraries": libraries}
for name, call in (("one tile", tiles[:1]), ("a call", tiles), ("one tile again", tiles[:1]), ("a call again", tiles)):
    encoder.encode(call)
    found[name] = held() - libraries
print(json.dumps(found))
"""

app = make_app("open_cost", __doc__ or "")


@app.default
def open_cost(*bundles: Path, against: Path | None = None, rounds: int = 5, batch: int = 32) -> None:
    """Open bundles in fresh processes and print a table of each.

    Args:
        bundles: Bundle folders.
        against: Checkout of another version, whose processes take turns with those of this one.
        rounds: Processes of each version a figure.
        batch: Tiles of a call.
    """
    if rounds < 1 or not bundles:
        raise UsageError("nothing would be measured", hint="open_cost.py BUNDLE --rounds 5")
    checkouts = {"this version": HERE} | ({} if against is None else {"the other": against})
    for path in checkouts.values():
        if not (path / "src" / "atlas_edge").is_dir():
            raise InputError(f"{path} holds no src/atlas_edge", hint="give --against the folder of a checkout")
    processor = f"{hardware.cpu().name}, {hardware.usable_cores()} cores, {rounds} rounds in turns"
    print(f"{processor}; calls of {batch} tiles.")
    for bundle in bundles:
        manifest = read_manifest(bundle)
        weights = max(file.size_bytes for file in manifest.files)
        print(f"\n{bundle.name}: {manifest.target} {manifest.precision}, weights {weights / 1e6:.0f} MB\n")
        print(markdown(_measured(bundle, checkouts, rounds, batch), weights))


def markdown(found: Mapping[str, Mapping[str, Sequence[float]]], weights_bytes: int) -> str:
    """The table: a row a figure, a column a version, each the geometric mean of the rounds.

    Args:
        found: Version -> figure -> a value a round; milliseconds where the name ends in `ms`, bytes otherwise.
        weights_bytes: Of the model file, which memory is told in multiples of.
    """
    names = list(found)
    ratio = [f"{names[1]} / {names[0]}"] if len(names) > 1 else []
    lines = [f"| {' | '.join(['', *names, *ratio])} |", "|---" * (1 + len(names) + len(ratio)) + "|"]
    for figure in found[names[0]]:
        values = [np.array(found[name][figure], dtype=float) for name in names]
        cells = [_cell(figure, value, weights_bytes) for value in values]
        if ratio:
            between = geometric_mean_interval(values[1] / values[0])
            cells.append(f"{between.estimate:.2f} [{between.low:.2f}, {between.high:.2f}]")
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: str, values: NDArray[np.float64], weights_bytes: int) -> str:
    mean = float(np.exp(np.log(values).mean()))
    if figure.endswith("ms"):
        return f"{mean:.0f}"
    return f"{mean / 1e6:.0f} MB ({mean / weights_bytes:.2f}x)"


def _measured(
    bundle: Path, checkouts: Mapping[str, Path], rounds: int, batch: int
) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {name: {} for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        caches = {name: Path(scratch) / str(number) for number, name in enumerate(checkouts)}
        for name, checkout in checkouts.items():
            _start_ms(checkout, bundle, caches[name], caches[name])
        for number in range(rounds):
            for name in list(checkouts)[:: 1 if number % 2 else -1]:
                one = {
                    "start to first embedding, ms": _start_ms(checkouts[name], bundle, None, caches[name]),
                    "the same, compiled before, ms": _start_ms(checkouts[name], bundle, caches[name], caches[name]),
                }
                memory = json.loads(_run(checkouts[name], _MEMORY, [str(bundle), str(batch)], caches[name]))
                memory.pop("libraries")
                for figure, value in (one | {f"memory, {key}": value for key, value in memory.items()}).items():
                    found[name].setdefault(figure, []).append(value)
                print(f"round {number + 1}, {name}: {one}", file=sys.stderr)
    return found


def _start_ms(checkout: Path, bundle: Path, cache: Path | None, home: Path) -> float:
    started = time.time()
    return 1e3 * (float(_run(checkout, _START, [str(bundle), str(cache or "")], home)) - started)


def _run(checkout: Path, script: str, arguments: Sequence[str], home: Path) -> str:
    """What a script prints last, run with a checkout's package and a user's cache of its own."""
    own: dict[str, Any] = {"PYTHONPATH": str((checkout / "src").resolve()), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise InputError(f"{checkout}: {last}", hint="open the bundle with atlas-bench selftest to see more")
    return done.stdout.splitlines()[-1]


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
