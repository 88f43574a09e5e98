"""An hour in the life of a watcher, with everything that goes wrong: `python tests/embed/watcher_hour.py --minutes 60`.

Not run by pytest. It draws small slides into a drop folder, runs `atlas-embed watch` on it with a bundle that costs
nothing, does one thing after another to both, and judges at the end: every good slide is embedded, none twice, and
each output is what `embed_slide` makes of that slide. Linux, and the right to mount for the full disk.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from embed.conftest import make_mean_bundle, make_scan
from support import ROOT

OPTIONS = (
    "--settle-seconds", "2", "--poll-seconds", "0.5", "--retry-seconds", "2", "--attempts", "3", "--no-page", "--batch",
    "16", "--min-tissue", "0.1",
)  # fmt: skip
# What a test cannot do to the machine is done to the process: another host's name, a clock that is set back.
_FAKE = """
import os, socket, sys, time
if name := os.environ.get("FAKE_HOST"):
    socket.gethostname = lambda: name
    from atlas_edge.system import process
    process._machine = lambda: name
if shift := float(os.environ.get("FAKE_CLOCK", "0")):
    genuine = time.time
    time.time = lambda: genuine() + shift
from atlas_edge.embed.cli import main
sys.argv[0] = "atlas-embed"
main()
"""


class Hour:
    """The folders, the watcher and what was done to them."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.scans, self.out = work / "share", work / "disk"
        self.scans.mkdir(parents=True)
        self.out.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(self.out)], check=True)
        self.bundle = make_mean_bundle(work / "bundle")
        self.other_bundle = make_mean_bundle(work / "other" / "bundle", tile_px=64)
        self.good: dict[Path, int] = {}
        self.touched_paths: set[Path] = set()
        self.rows: list[tuple[str, str]] = []
        self.number = 0
        self.begun = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, bundle: Path | None = None, **fake: str) -> "subprocess.Popen[bytes]":
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **fake}
        command = [sys.executable, "-c", _FAKE, "watch", self.scans, "--bundle", bundle or self.bundle]
        before = len(self.events())
        with (self.work / "stderr.txt").open("ab") as stderr:
            process = subprocess.Popen(
                [*map(str, command), "--out", str(self.out), *OPTIONS], env=environ, stderr=stderr, stdout=stderr
            )
        self.until(lambda: self.said("start", since=before) or process.poll() is not None)
        return process

    def events(self) -> list[dict[str, Any]]:
        log = self.out / "atlas-embed.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.1)
        return False

    def said(self, event: str, path: Path | None = None, since: int = 0) -> bool:
        return any(
            line["event"] == event and (path is None or line.get("slide") == str(path))
            for line in self.events()[since:]
        )

    def slide(self, name: str | None = None) -> Path:
        """Put a whole slide into the folder, in one step."""
        self.number += 1
        drawn = make_scan(self.work / "drawn.tif", self.number)
        path = self.scans / (name or f"s{self.number:04}.tif")
        path.parent.mkdir(exist_ok=True)
        drawn.replace(path)
        self.good[path] = self.number
        return path

    def note(self, what: str, did: str) -> None:
        self.rows.append((what, did))
        print(f"{(time.monotonic() - self.begun) / 60:6.1f} min  {what}: {did}", flush=True)

    # What is done to it.

    def kill(self) -> None:
        path = self.slide()
        self.until(lambda: self.said("begin", path))
        time.sleep(self.random.random() * 0.4)
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self.start()
        self.note("kill -9 in a slide", self._became(path))

    def other_host(self) -> None:
        path = self.slide()
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.process = self.start(FAKE_HOST="container-1")
        self.until(lambda: self.said("begin", path))
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self.start(FAKE_HOST="container-2")
        self.note("kill -9, started again under another host's name", self._became(path, 240))
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.process = self.start()

    def clock_back(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.process = self.start(FAKE_CLOCK="-3600")
        path = self.slide()
        self.note("clock set back by an hour", self._became(path))

    def clock_forward(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.process = self.start(FAKE_CLOCK="86400")
        path = self.slide()
        self.note("clock set forward by a day", self._became(path))
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.process = self.start()

    def share_gone(self) -> None:
        path, since = self.slide(), len(self.events())
        away = self.work / "away"
        self.scans.replace(away)
        time.sleep(self.random.choice([1, 5, 60]))
        did = "told" if self.said("trouble", since=since) else "not told"
        away.replace(self.scans)
        self.note("share gone for a while", f"{did}; {self._became(path)}")

    def mount_point_empty(self) -> None:
        path = self.slide()
        away = self.work / "away"
        self.scans.replace(away)
        self.scans.mkdir()
        time.sleep(3)
        self.scans.rmdir()
        away.replace(self.scans)
        self.note("share gone, its mount point empty", self._became(path))

    def disk_full(self) -> None:
        since = len(self.events())
        ballast = self.out / "ballast"
        free = shutil.disk_usage(self.out).free
        with ballast.open("wb") as file:
            try:
                file.write(b"x" * free)
                file.flush()
            except OSError:
                pass
        path = self.slide()
        time.sleep(20)
        alive = self.process is not None and self.process.poll() is None
        ballast.unlink()
        did = self._became(path, 240)
        told = self.said("disk full", since=since) or self.said("trouble", since=since)
        self.note("disk full for 20 s", f"{'waited' if alive else 'ENDED'}, {'told' if told else 'NOT TOLD'}; {did}")

    def renamed(self) -> None:
        path = self.slide()
        self.until(lambda: self.said("found", path), 20)
        final = path.with_name(f"final-{path.name}")
        path.replace(final)
        self.good[final] = self.good.pop(path)
        became = self._became(final)
        self.note(
            "renamed before it settled", f"{'first name forgotten' if self.said('gone', path) else '?'}; {became}"
        )

    def grows(self) -> None:
        path = self.slide()
        whole = path.read_bytes()
        with path.open("wb") as file:
            for start in range(0, len(whole), len(whole) // 6):
                file.write(whole[start : start + len(whole) // 6])
                file.flush()
                time.sleep(1)
        self.note("written over 6 s", self._became(path))

    def deleted(self) -> None:
        path = self.slide()
        self.until(lambda: self.said("found", path), 20)
        path.unlink()
        del self.good[path]
        self.note(
            "deleted before it settled", "forgotten" if self.until(lambda: self.said("gone", path), 30) else "KEPT"
        )

    def blank(self) -> None:
        import tifffile

        self.number += 1
        path = self.scans / f"blank{self.number:04}.tif"
        glass = np.random.default_rng(self.number).normal(243, 2, (640, 960, 3))
        pixels = np.clip(glass, 0, 255).round().astype(np.uint8)
        tifffile.imwrite(
            self.work / "drawn.tif", pixels, tile=(64, 64), photometric="rgb", metadata=None, resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
        (self.work / "drawn.tif").replace(path)
        good = self.slide()
        told = self.until(lambda: self.said("no tissue", path))
        self.note("blank slide", f"{'told: no tissue' if told else 'NOT TOLD'}; the next one: {self._became(good)}")

    def damaged(self) -> None:
        path = self.slide()
        del self.good[path]
        path.write_bytes(path.read_bytes()[:5000])
        good = self.slide()
        set_aside = self.until(lambda: (self.out / "quarantine" / f"{path.name}.json").exists())
        did = "quarantined" if set_aside else "NOT QUARANTINED"
        self.note("slide cut off", f"{did}; the next one: {self._became(good)}")

    def odd_name(self) -> None:
        path = self.slide(os.fsdecode(b"b\xfcro-%d.tif" % self.number))
        self.note("name that is no UTF-8", self._became(path))

    def same_stem(self) -> None:
        first = self.slide()
        second = self.slide(f"{first.stem}.tiff")
        self.note("two slides of one stem", f"{self._became(first)}, {self._became(second)}")

    def other_plan(self) -> None:
        process = self.start(bundle=self.other_bundle)
        code = process.wait(timeout=600)  # other processes may have the processor
        self.note("second watcher with another bundle", f"refused, exit {code}" if code == 2 else f"exit {code}")

    def two_watchers(self) -> None:
        second = self.start()
        paths = [self.slide() for _ in range(6)]
        became = Counter(self._became(path) for path in paths)
        second.send_signal(signal.SIGTERM)
        second.wait()
        self.note("two watchers, six slides", ", ".join(f"{count} {what}" for what, count in became.items()))

    def touched(self) -> None:
        path = self.slide()
        self._became(path)
        before = len(self.events())
        os.utime(path)
        again = self.until(lambda: self.said("done", path, since=before))
        self.note("touched after it was done", "embedded again" if again else "NOT embedded again")
        self.touched_paths.add(path)

    def journal_lost(self) -> None:
        assert self.process is not None
        self.until(lambda: all(map(self.is_embedded, self.good)))
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        before = len(self.events())
        for file in self.out.glob("atlas-embed.sqlite*"):
            file.unlink()
        self.process = self.start()
        path = self.slide()
        did = self._became(path)
        embedded = [line["slide"] for line in self.events()[before:] if line["event"] == "done"]
        self.note("journal lost", f"{len(embedded) - 1} embedded again; {did}")

    def _became(self, path: Path, seconds: float = 180) -> str:
        return "embedded" if self.until(lambda: self.is_embedded(path), seconds) else "NOT EMBEDDED"

    def is_embedded(self, path: Path) -> bool:
        # One that was killed after its output was written is found to be embedded by the next.
        return self.said("done", path) or self.said("already embedded", path)

    def judge(self) -> list[str]:
        """What is wrong at the end; nothing is best."""
        from atlas_edge.embed import EmbedConfig, embed_slide
        from atlas_edge.embed.workers import open_encoder

        wrong: list[str] = []
        self.until(lambda: all(map(self.is_embedded, self.good)), 120)
        done = Counter(line["slide"] for line in self.events() if line["event"] == "done")
        done.update({str(path) for path in self.good if self.is_embedded(path) and not done[str(path)]})
        outs = {str(path): str(self.out / f"{path.stem}.h5") for path in self.good}
        outs |= {line["slide"]: line["out"] for line in self.events() if line["event"] == "done"}
        encoder, _ = open_encoder(str(self.bundle), batch=16)
        for path, seed in self.good.items():
            if not done[str(path)]:
                wrong.append(f"{path.name!r} was lost")
                continue
            if done[str(path)] > 1 + (path in self.touched_paths):
                wrong.append(f"{path.name!r} was embedded {done[str(path)]} times")
            drawn = make_scan(self.work / "again.tif", seed)
            embed_slide(drawn, encoder, self.work / "again.h5", EmbedConfig(batch=16))
            with h5py.File(outs[str(path)]) as found, h5py.File(self.work / "again.h5") as expected:
                if found["features"][:].tobytes() != expected["features"][:].tobytes():
                    wrong.append(f"{path.name!r} has other embeddings than an undisturbed run")
        extra = set(done) - {str(path) for path in self.good}
        wrong += [f"{name!r} was embedded, and should not be" for name in extra]
        return wrong


def main() -> int:
    """Run it and print what was done and what the watcher did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="watcher-hour-") as folder:
        hour = Hour(Path(folder), given.seed)
        faults = [
            hour.kill, hour.other_host, hour.clock_back, hour.clock_forward, hour.share_gone, hour.mount_point_empty,
            hour.disk_full, hour.renamed, hour.grows, hour.deleted, hour.blank, hour.damaged, hour.odd_name,
            hour.same_stem, hour.other_plan, hour.two_watchers, hour.touched, hour.journal_lost,
        ]  # fmt: skip
        try:
            hour.process = hour.start()
            while time.monotonic() - hour.begun < given.minutes * 60:
                for fault in hour.random.sample(faults, len(faults)):
                    hour.slide()
                    fault()
                    if hour.process is None or hour.process.poll() is not None:
                        hour.note("watcher", f"ENDED with {hour.process and hour.process.returncode}")
                        hour.process = hour.start()
                    if time.monotonic() - hour.begun > given.minutes * 60:
                        break
            wrong = hour.judge()
        finally:
            if hour.process is not None:
                hour.process.kill()
                hour.process.wait()
            subprocess.run(["umount", "-l", str(hour.out)], check=False)
    print(f"\n{len(hour.good)} good slides in {(time.monotonic() - hour.begun) / 60:.0f} min")
    for what, times in Counter(what for what, _ in hour.rows).most_common():
        did = Counter(did for row, did in hour.rows if row == what)
        print(f"| {what} | {times} | {'; '.join(f'{count} x {said}' for said, count in did.items())} |")
    wrong += [f"{what}: {did}" for what, did in hour.rows if "NOT EMBEDDED" in did or did.startswith("ENDED")]
    print("\n".join(wrong) or "nothing lost, nothing twice, all as undisturbed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
