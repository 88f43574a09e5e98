"""Hours in the life of a watcher, with everything that goes wrong: `python tests/embed/watcher_hour.py --minutes 60`.

Not run by pytest. It puts small drawn slides, and copies of real ones, into a drop folder, runs `atlas-embed watch` on
it with a bundle that costs nothing, does one thing after another to both, and judges at the end: every good slide is
embedded, none twice, each output is what `embed_slide` makes of that slide, and memory is flat. For the half of the
time in the middle nothing ends the watcher, so that one process lives through the rest. Linux, and the right to mount
for the full disk.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from embed.hour.faults import ENDING, LASTING
from embed.hour.judge import counts, memory, what_is_wrong
from embed.hour.watched import Watched


def main() -> int:
    """Run it, and write what was done and what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--slides", type=int, help="so many, spread over the minutes; as fast as it goes without")
    parser.add_argument("--real", type=Path, help="folder of real slides; every eighth slide is a copy of one")
    parser.add_argument("--record", type=Path, help="folder for result.txt, did.txt, memory.csv; a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    real = sorted(path for path in given.real.iterdir() if path.suffix in (".svs", ".tif")) if given.real else []
    with tempfile.TemporaryDirectory(prefix="watcher-hour-") as folder:
        record = given.record or Path(folder) / "record"
        record.mkdir(parents=True, exist_ok=True)
        hour = Watched(Path(folder) / "work", given.seed, real, record)
        try:
            hour.process = hour.start()
            _go_on(hour, given.minutes, given.slides)
            wrong = what_is_wrong(hour)
            told, grown = memory(hour)
            lines = [f"{hour.minutes:.0f} min", *counts(hour), *told, *_table(hour)]
        finally:
            hour.close()
        wrong += grown
        lines.append("\n".join(wrong) or "nothing lost, nothing twice, all as undisturbed, memory flat")
        (record / "result.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))
    return bool(wrong)


def _go_on(hour: Watched, minutes: float, slides: int | None) -> None:
    pace_s = minutes * 60 / slides if slides else 0.0
    waiting: list[object] = []
    while hour.minutes < minutes and not (slides and hour.number >= slides):
        in_the_middle = 0.25 <= hour.minutes / minutes < 0.75
        faults = [fault for fault in (LASTING if in_the_middle else (*ENDING, *LASTING)) if fault not in waiting]
        if not faults:
            waiting.clear()
            continue
        fault = hour.random.choice(faults)
        waiting.append(fault)
        hour.slide()
        fault(hour)
        if hour.process is None or hour.process.poll() is not None:
            hour.note("watcher", f"ENDED with {hour.process and hour.process.returncode}")
            hour.process = hour.start()
        time.sleep(max(hour.begun + hour.number * pace_s - time.monotonic(), 0))


def _table(hour: Watched) -> list[str]:
    lines = []
    for what, times in Counter(what for what, _ in hour.rows).most_common():
        did = Counter(did for row, did in hour.rows if row == what)
        lines.append(f"| {what} | {times} | {'; '.join(f'{count} x {said}' for said, count in did.items())} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
