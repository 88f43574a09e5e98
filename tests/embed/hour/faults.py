"""What is done to a watcher: each puts a slide into its folder, does something, and notes what became of it."""

import os
import shutil
import signal
import time
from collections import Counter

import numpy as np

from embed.hour.watched import Watched

_HOUR_S, _DAY_S = 3600.0, 86400.0


def kill(hour: Watched) -> None:
    path = hour.slide()
    hour.until(lambda: hour.said("begin", path))
    time.sleep(hour.random.random() * 0.4)
    hour.end(hour.process, signal.SIGKILL)
    hour.process = hour.start()
    hour.note("kill -9 in a slide", hour.became(path))


def other_host(hour: Watched) -> None:
    path = hour.slide()
    hour.end(hour.process, signal.SIGTERM)
    hour.process = hour.start(FAKE_HOST="container-1")
    hour.until(lambda: hour.said("begin", path))
    hour.end(hour.process, signal.SIGKILL)
    hour.process = hour.start(FAKE_HOST="container-2")
    hour.note("kill -9, started again under another host's name", hour.became(path))
    hour.end(hour.process, signal.SIGTERM)
    hour.process = hour.start()


def clock_between(hour: Watched) -> None:
    hour.end(hour.process, signal.SIGTERM)
    hour.set_clock(hour.random.choice([-_HOUR_S, _DAY_S]))
    hour.process = hour.start()
    hour.note("clock set while it was off", hour.became(hour.slide()))
    hour.end(hour.process, signal.SIGTERM)
    hour.set_clock(0.0)
    hour.process = hour.start()


def journal_lost(hour: Watched) -> None:
    hour.until(lambda: all(map(hour.is_embedded, hour.good)))
    hour.end(hour.process, signal.SIGTERM)
    before = len(hour.events())
    for file in hour.out.glob("atlas-embed.sqlite*"):
        file.unlink()
    hour.process = hour.start()
    did = hour.became(hour.slide())
    embedded = [line["slide"] for line in hour.events()[before:] if line["event"] == "done"]
    hour.note("journal lost", f"{len(embedded) - 1} embedded again; {did}")


def clock_back(hour: Watched) -> None:
    path = hour.slide()
    hour.until(lambda: hour.said("found", path), 60)
    hour.set_clock(-_HOUR_S)
    hour.note("clock set back by an hour while it runs", f"{hour.became(path)}, the next {hour.became(hour.slide())}")
    hour.set_clock(0.0)


def clock_forward(hour: Watched) -> None:
    path = hour.slide()
    hour.until(lambda: hour.said("found", path), 60)
    hour.set_clock(_DAY_S)
    hour.note("clock set forward by a day while it runs", f"{hour.became(path)}, the next {hour.became(hour.slide())}")
    hour.set_clock(0.0)


def share_gone(hour: Watched) -> None:
    path, since = hour.slide(), len(hour.events())
    away = hour.work / "away"
    hour.scans.replace(away)
    seconds = hour.random.choice([1, 5, 60, 60])
    time.sleep(seconds)
    did = "told" if hour.said("trouble", since=since) else "not told"
    away.replace(hour.scans)
    hour.note(f"share gone for {seconds} s", f"{did}; {hour.became(path)}")


def mount_point_empty(hour: Watched) -> None:
    path = hour.slide()
    away = hour.work / "away"
    hour.scans.replace(away)
    hour.scans.mkdir()
    time.sleep(3)
    hour.scans.rmdir()
    away.replace(hour.scans)
    hour.note("share gone, its mount point empty", hour.became(path))


def disk_full(hour: Watched) -> None:
    since = len(hour.events())
    ballast = hour.out / "ballast"
    with ballast.open("wb") as file:
        try:
            for _ in range(shutil.disk_usage(hour.out).free // 2**20 + 1):
                file.write(b"x" * 2**20)
                file.flush()
        except OSError:
            pass
    path = hour.slide()
    time.sleep(20)
    alive = hour.process is not None and hour.process.poll() is None
    ballast.unlink()
    did = hour.became(path)
    told = hour.said("disk full", since=since) or hour.said("trouble", since=since)
    hour.note("disk full for 20 s", f"{'waited' if alive else 'ENDED'}, {'told' if told else 'NOT TOLD'}; {did}")


def renamed(hour: Watched) -> None:
    path = hour.slide()
    hour.until(lambda: hour.said("found", path), 60)
    final = path.with_name(f"final-{path.name}")
    path.replace(final)
    hour.good[final] = hour.good.pop(path)
    did = hour.became(final)
    # Where the machine was slow the first name was begun, or done, before.
    first = next((event for event in ("gone", "done") if hour.said(event, path)), "neither gone nor done")
    if first == "done":
        hour.good[path] = hour.good[final]
    hour.note("renamed before it settled", f"first name {first}; {did}")


def renamed_when_done(hour: Watched) -> None:
    path = hour.slide()
    hour.became(path)
    # The very bytes under another name are another slide: names, not hashes, are what a lab goes by.
    final = path.with_name(f"late-{path.name}")
    path.replace(final)
    hour.good[final] = hour.good[path]
    hour.note("renamed after it was done", hour.became(final))


def replaced(hour: Watched) -> None:
    path = hour.slide()
    hour.became(path)
    before = len(hour.events())
    hour.slide(over=path)
    hour.again[path] += 1
    done = hour.until(lambda: hour.said("done", path, since=before), 600)
    hour.note("replaced after it was done", "embedded again" if done else "NOT EMBEDDED again")


def grows(hour: Watched) -> None:
    path = hour.slide()
    whole = path.read_bytes()
    with path.open("wb") as file:
        for start in range(0, len(whole), len(whole) // 6):
            file.write(whole[start : start + len(whole) // 6])
            file.flush()
            time.sleep(1)
    hour.note("written over 6 s", hour.became(path))


def deleted(hour: Watched) -> None:
    path = hour.slide()
    hour.until(lambda: hour.said("found", path), 60)
    path.unlink()
    gone = hour.until(lambda: hour.said("gone", path) or hour.is_embedded(path), 60)
    if not hour.is_embedded(path):
        del hour.good[path]
    hour.note("deleted before it settled", "forgotten" if gone else "KEPT")


def blank(hour: Watched) -> None:
    import tifffile

    hour.number += 1
    hour.put["blank"] += 1
    path = hour.scans / f"blank{hour.number:04}.tif"
    glass = np.random.default_rng(hour.number).normal(243, 2, (640, 960, 3))
    pixels = np.clip(glass, 0, 255).round().astype(np.uint8)
    tifffile.imwrite(
        hour.work / "drawn.tif", pixels, tile=(64, 64), photometric="rgb", metadata=None, resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    (hour.work / "drawn.tif").replace(path)
    good = hour.slide()
    told = hour.until(lambda: hour.said("no tissue", path))
    hour.note("blank slide", f"{'told: no tissue' if told else 'NOT TOLD'}; the next one: {hour.became(good)}")


def cut_off(hour: Watched) -> None:
    path = hour.slide()
    source, whole = hour.good.pop(path), path.read_bytes()
    path.write_bytes(whole[:5000])
    good = hour.slide()
    set_aside = hour.until(lambda: (hour.out / "quarantine" / f"{path.name}.json").exists())
    did = f"{'quarantined' if set_aside else 'NOT QUARANTINED'}; the next one: {hour.became(good)}"
    if hour.random.random() < 0.5:
        path.write_bytes(whole)
        hour.good[path] = source
        did = f"{did}; whole later: {hour.became(path)}"
    else:
        hour.put["cut off for good"] += 1
    hour.note("slide cut off", did)


def odd_name(hour: Watched) -> None:
    hour.note("name that is no UTF-8", hour.became(hour.slide(os.fsdecode(b"b\xfcro-%d.tif" % hour.number))))


def same_stem(hour: Watched) -> None:
    first = hour.slide()
    second = hour.slide(f"{first.name.split('.')[0]}.tiff")
    hour.note("two slides of one stem", f"{hour.became(first)}, {hour.became(second)}")


def other_plan(hour: Watched) -> None:
    code = hour.start(bundle=hour.other_bundle).wait(timeout=600)  # other processes may have the processor
    hour.note("second watcher with another bundle", f"refused, exit {code}" if code == 2 else f"exit {code}")


def two_watchers(hour: Watched) -> None:
    second = hour.start()
    paths = [hour.slide() for _ in range(6)]
    became = Counter(hour.became(path) for path in paths)
    hour.end(second, signal.SIGTERM)
    hour.note("two watchers, six slides", ", ".join(f"{count} {what}" for what, count in became.items()))


def touched(hour: Watched) -> None:
    path = hour.slide()
    hour.became(path)
    before = len(hour.events())
    os.utime(path)
    hour.again[path] += 1
    again = hour.until(lambda: hour.said("done", path, since=before))
    hour.note("touched after it was done", "embedded again" if again else "NOT embedded again")


ENDING = (kill, other_host, clock_between, journal_lost)
"""They end the watcher, and another takes up its work."""
LASTING = (
    clock_back, clock_forward, share_gone, mount_point_empty, disk_full, renamed, renamed_when_done, replaced, grows,
    deleted, blank, cut_off, odd_name, same_stem, other_plan, two_watchers, touched,
)  # fmt: skip
"""One watcher lives through them."""
