"""How long an export takes and how much memory, step by step; with another version, before and after in one run.

Each export is a process of its own, and versions take turns, because machines drift; what counts is the ratio:

    python tools/timing/export_time.py atlas2-demo synthetic --against ../older-checkout
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from atlas_edge.bench.interval import geometric_mean_interval
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import InputError, UsageError
from atlas_edge.system import hardware

HERE = Path(__file__).parents[2]
# Steps that take less are not compared.
_SHORTEST_S = 0.2
_SAMPLED_EVERY_S = 0.05
_LAST_LINES = 5

app = make_app("export_time", __doc__ or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One export.

    Attributes:
        seconds: Of each step, as the command says them; `start` is what is left of `whole`.
        memory_bytes: Most that its processes held at once, mapped files included.
    """

    seconds: dict[str, float]
    memory_bytes: int


@app.default
def export_time(
    model: str,
    tiles: str,
    /,
    *,
    against: Path | None = None,
    target: str = "openvino",
    precision: str = "int8",
    rounds: int = 3,
    options: str = "",
) -> None:
    """Time exports and print a table.

    Args:
        model: As `atlas-export` takes it.
        tiles: Calibrate on these, and judge on these.
        against: Checkout of another version, whose exports take turns with those of this one.
        target: What the bundle is for.
        precision: Of the bundle.
        rounds: Exports of each version.
        options: More options of `atlas-export`, after an equals sign: `--options="--no-speed --eval-limit 200"`.
    """
    if rounds < 1:
        raise UsageError(f"--rounds {rounds}: nothing would be measured", hint="--rounds 3")
    checkouts = {"this version": HERE} | ({} if against is None else {"the other": against})
    for path in checkouts.values():
        if not (path / "src" / "atlas_edge").is_dir():
            raise InputError(f"{path} holds no src/atlas_edge", hint="give --against the folder of a checkout")
    arguments = ["--target", target, "--precision", precision, "--calib", tiles, "--eval", tiles]
    arguments = [model, *arguments, *shlex.split(options)]
    runs: dict[str, list[Run]] = {name: [] for name in checkouts}
    for number in range(rounds):
        for name in list(checkouts)[:: 1 if number % 2 else -1]:
            runs[name].append(_export(checkouts[name], arguments))
            print(f"round {number + 1}, {name}: {runs[name][-1].seconds['whole']:.1f} s", file=sys.stderr)
    print(f"`atlas-export {shlex.join(arguments)}`\n\n{markdown(runs)}")


def markdown(runs: Mapping[str, Sequence[Run]]) -> str:
    """The table: a row a step, with the geometric mean of the rounds and its 95 % interval."""
    names = list(runs)
    processor = f"{hardware.cpu().name}, {hardware.usable_cores()} cores, {len(runs[names[0]])} rounds in turns"
    head = ["step", *(f"{name}, s" for name in names), *(["ratio"] if len(names) > 1 else [])]
    lines = [f"{processor}.", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    steps = dict.fromkeys(step for name in names for run in runs[name] for step in run.seconds)
    for step in steps:
        times = [np.array([run.seconds.get(step, 0.0) for run in runs[name]]) for name in names]
        cells = [_mean(seconds) for seconds in times]
        if len(names) > 1:
            compared = min(seconds.min() for seconds in times) >= _SHORTEST_S
            cells.append(f"{_mean(times[1] / times[0], 2)}" if compared else "")
        lines.append(f"| {step} | {' | '.join(cells)} |")
    peaks = [f"{max(run.memory_bytes for run in runs[name]) / 1e9:.2f} GB" for name in names]
    lines.append(f"| peak memory | {' | '.join(peaks)} |{' |' if len(names) > 1 else ''}")
    return "\n".join(lines)


def _mean(values: NDArray[np.float64], digits: int = 1) -> str:
    if values.min() < _SHORTEST_S:
        return f"{values.mean():.{digits}f}"
    found = geometric_mean_interval(values)
    if len(values) < 2:
        return f"{found.estimate:.{digits}f}"
    return f"{found.estimate:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _export(checkout: Path, arguments: Sequence[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        command = [sys.executable, "-m", "atlas_edge.export", *arguments, "--out", str(bundle)]
        said = Path(folder) / "said.txt"
        environment = {"PYTHONPATH": str((checkout / "src").resolve())}
        started = time.perf_counter()
        with said.open("wb") as file:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=file)
            peak = _peak_bytes(process)
        whole = time.perf_counter() - started
        report = bundle / "report.json"
        if not report.is_file():
            lines = said.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            raise InputError(
                f"{checkout}: atlas-export ended with code {process.returncode}: {' / '.join(lines)}",
                hint="run it by itself with the same options",
            )
        seconds: dict[str, float] = json.loads(report.read_bytes())["seconds"]
    rest = whole - sum(seconds.values())
    return Run(seconds={"start": rest, **seconds, "whole": whole}, memory_bytes=peak)


def _peak_bytes(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process; the most memory that it and its children held together."""
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        held = 0
        with suppress(psutil.Error):
            for one in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error):
                    held += one.memory_info().rss
        peak = max(peak, held)
        time.sleep(_SAMPLED_EVERY_S)
    return peak


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
