"""A watcher that is at work, its folders, its log and its memory."""

import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embed.conftest import make_mean_bundle, make_scan
from support import ROOT

OPTIONS = (
    "--settle-seconds", "2", "--poll-seconds", "1", "--retry-seconds", "2", "--attempts", "3", "--no-page", "--batch",
    "16", "--threads", "1", "--min-tissue", "0.1",
)  # fmt: skip
# What a test cannot do to the machine is done to the process: another host's name, a clock that is set.
_FAKE = """
import mmap, os, socket, struct, sys, time
if name := os.environ.get("FAKE_HOST"):
    socket.gethostname = lambda: name
    from atlas_edge.system import process
    process._machine = lambda: name
with open(os.environ["FAKE_CLOCK"], "rb") as file:
    shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
genuine = time.time
time.time = lambda: genuine() + struct.unpack("d", shift[:8])[0]
from atlas_edge.embed.cli import main
sys.argv[0] = "atlas-embed"
main()
"""
_SAMPLE_S = 15.0
_STEP_S = 0.2


class Watched:
    """The folders, the watcher and what was done to them.

    Args:
        work: Folder for all of it.
        seed: Of what is drawn and of the order of faults.
        real: Slides of which every eighth one is a copy; none for drawn ones only.
        record: Folder for `memory.csv`, `did.txt` and the watcher's own output.

    Attributes:
        good: Slides that must be embedded in the end, with the seed that drew them or the slide they are copies of.
        again: How often a slide was changed after it was embedded.
        put: How many slides of each kind were put into the folder.
        rows: What was done, and what became of it.
    """

    def __init__(self, work: Path, seed: int, real: list[Path], record: Path) -> None:
        self.work, self.random, self.real, self.record = work, random.Random(seed), real, record
        self.scans, self.out = work / "share", work / "disk"
        self.scans.mkdir(parents=True)
        self.out.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(self.out)], check=True)
        self.bundle = make_mean_bundle(work / "bundle")
        self.other_bundle = make_mean_bundle(work / "other" / "bundle", tile_px=64)
        self.good: dict[Path, int | Path] = {}
        self.again: Counter[Path] = Counter()
        self.put: Counter[str] = Counter()
        self.rows: list[tuple[str, str]] = []
        self.number = 0
        self.begun = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self._events: list[dict[str, Any]] = []
        self._finished: set[str] = set()
        self._read_bytes = 0
        (work / "clock").write_bytes(struct.pack("d", 0.0))
        with (work / "clock").open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)
        self._over = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    @property
    def minutes(self) -> float:
        """Since it began."""
        return (time.monotonic() - self.begun) / 60

    def set_clock(self, shift_s: float) -> None:
        """Set the clock of the watcher, and of one that is at work, off by so many seconds."""
        self._clock[:8] = struct.pack("d", shift_s)

    def start(self, bundle: Path | None = None, **fake: str) -> "subprocess.Popen[bytes]":
        """Start a watcher and wait until it says so, or has ended."""
        environ = {
            **os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1",
            "FAKE_CLOCK": str(self.work / "clock"), **fake,
        }  # fmt: skip
        command = [sys.executable, "-c", _FAKE, "watch", self.scans, "--bundle", bundle or self.bundle]
        before = len(self.events())
        with (self.record / "watcher.txt").open("ab") as told:
            process = subprocess.Popen(
                [*map(str, command), "--out", str(self.out), *OPTIONS], env=environ, stderr=told, stdout=told
            )
        self.until(lambda: self.said("start", since=before) or process.poll() is not None, 300)
        return process

    def end(self, process: "subprocess.Popen[bytes] | None", signal_number: int) -> None:
        """Send a signal and wait."""
        assert process is not None
        process.send_signal(signal_number)
        process.wait()

    def close(self) -> None:
        """End it all."""
        self._over.set()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        subprocess.run(["umount", "-l", str(self.out)], check=False)

    def events(self) -> list[dict[str, Any]]:
        """All that the log holds; what was read once is not read again."""
        log = self.out / "atlas-embed.jsonl"
        if not log.exists():
            return self._events
        with log.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            self._events.append(event)
            if event["event"] in ("done", "already embedded"):
                # One that was killed after its output was written is found to be embedded by the next.
                self._finished.add(event["slide"])
        return self._events

    def until(self, condition: Callable[[], Any], seconds: float = 300) -> bool:
        """Wait for something; whether it came to be."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(_STEP_S)
        return False

    def said(self, event: str, path: Path | None = None, since: int = 0) -> bool:
        """Whether the log has an event, of a slide, from that line on."""
        return any(
            line["event"] == event and (path is None or line.get("slide") == str(path))
            for line in self.events()[since:]
        )

    def is_embedded(self, path: Path) -> bool:
        """Whether a slide has been embedded, be it before a kill."""
        self.events()
        return str(path) in self._finished

    def became(self, path: Path, seconds: float = 600) -> str:
        """Wait for a slide's embeddings."""
        return "embedded" if self.until(lambda: self.is_embedded(path), seconds) else "NOT EMBEDDED"

    def slide(self, name: str | None = None, *, over: Path | None = None) -> Path:
        """Put a whole slide into the folder, in one step, or in another's place."""
        self.number += 1
        source: int | Path = self.number
        suffix = ".tif"
        if self.real and self.number % 8 == 0 and name is None and over is None:
            source = self.real[self.number // 8 % len(self.real)]
            shutil.copyfile(source, self.work / "drawn.tif")
            suffix = "".join(source.suffixes[-2:]) if source.name.endswith(".ome.tif") else source.suffix
            self.put["real"] += 1
        else:
            make_scan(self.work / "drawn.tif", self.number)
            self.put["drawn"] += 1
        path = over or self.scans / (name or f"s{self.number:04}{suffix}")
        (self.work / "drawn.tif").replace(path)
        self.good[path] = source
        return path

    def note(self, what: str, did: str) -> None:
        """Tell what was done and what became of it."""
        self.rows.append((what, did))
        with (self.record / "did.txt").open("a") as file:
            print(f"{self.minutes:6.1f} min  slide {self.number:4}  {what}: {did}", file=file)

    def _sample(self) -> None:
        with (self.record / "memory.csv").open("w") as file:
            print("minutes,process,slides,embedded,rss_mb,anonymous_mb,threads,files,cpu_s", file=file)
            while not self._over.wait(_SAMPLE_S):
                process = self.process
                sample = None if process is None else _memory(process.pid)
                if process is not None and sample is not None:
                    print(
                        f"{self.minutes:.2f},{process.pid},{self.number},{len(self._finished)},{sample}",
                        file=file, flush=True,
                    )  # fmt: skip


def _memory(process: int) -> str | None:
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
        )
        times = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        files = len(list(Path(f"/proc/{process}/fd").iterdir()))
        resident, anonymous = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    except (OSError, KeyError):  # it has just ended
        return None
    spent = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return f"{resident:.1f},{anonymous:.1f},{int(status['Threads'])},{files},{spent:.1f}"
