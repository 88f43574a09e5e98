"""How many tiles a second the decode threads of one process could give at most, whatever the number of cores.

Threads share one interpreter, which one of them holds at a time. py-spy (`pip install py-spy`) samples how long a tile
holds it; as many tiles as fit into a second of that are the most that any number of threads can give:

    python tools/timing/decode_limit.py --side 8192 --py-spy py-spy

Beside it what one thread, two threads and two processes give here, in turns.
"""

import multiprocessing
import statistics
import subprocess
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from atlas_edge.cli import make_app, run_app
from atlas_edge.system import hardware
from read_throughput import PacedEncoder, tiles_per_s, written

_SAMPLES_A_SECOND = 200
_SECONDS = 10

app = make_app("decode_limit", __doc__ or "")


@app.default
def decode_limit(*, side: int = 8192, py_spy: str = "py-spy", rounds: int = 3) -> None:
    """Draw a slide, write it in each form, and print the table.

    Args:
        side: Pixels of the slide's side.
        py_spy: The program.
        rounds: Of the turns; the median is told.
    """
    print(f"{hardware.cpu().name}, {hardware.usable_cores()} cores; {side} x {side} px\n")
    print(
        "| form | 1 thread | 2 threads | 2 processes | of a tile: µs, holding the interpreter | at most, by threads |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in written(Path(folder), side).items():
            one, two, processes = (
                statistics.median(column)
                for column in zip(
                    *(
                        (tiles_per_s(path, PacedEncoder(), 1), tiles_per_s(path, PacedEncoder(), 2), _processes(path))
                        for _ in range(rounds)
                    ),
                    strict=True,
                )
            )
            rate, held = _held(path, py_spy)
            print(
                f"| {name} | {one:.0f} | {two:.0f} | {processes:.0f} | {1e6 / rate:.0f}, {1e6 * held / rate:.0f} "
                f"| {rate / held:.0f} |",
                flush=True,
            )


def _processes(path: Path) -> float:
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    go = context.Event()
    children = [context.Process(target=_once, args=(path, results, go)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        results.get()  # it has imported what it needs
    go.set()
    rates = [results.get() for _ in children]
    for child in children:
        child.join()
    return float(sum(rates))


def _once(path: Path, results: Any, go: Event) -> None:
    results.put("ready")
    go.wait()
    results.put(tiles_per_s(path, PacedEncoder(), 1))


def _held(path: Path, py_spy: str) -> tuple[float, float]:
    """Tiles a second of one decode thread, and the share of that time in which any thread holds the interpreter."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    over = context.Event()
    child = context.Process(target=_go_on, args=(path, results, over))
    child.start()
    results.get()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "samples.txt"
        command = [py_spy, "record", "--gil", "--pid", str(child.pid), "--duration", str(_SECONDS)]
        command += ["--rate", str(_SAMPLES_A_SECOND), "--format", "raw", "--output", str(raw)]
        subprocess.run(command, check=True, capture_output=True)
        samples = sum(int(line.rpartition(" ")[2]) for line in raw.read_text().splitlines())
    over.set()
    rate = results.get()
    child.join()
    return rate, samples / (_SAMPLES_A_SECOND * _SECONDS)


def _go_on(path: Path, results: Any, over: Event) -> None:
    tiles_per_s(path, PacedEncoder(), 1)
    results.put("ready")
    rates = []
    while not over.is_set():
        rates.append(tiles_per_s(path, PacedEncoder(), 1))
        time.sleep(0)
    results.put(statistics.median(rates))


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
