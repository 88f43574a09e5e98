"""The watcher through its real command line: good slides, bad ones, kills, two at once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.embed.slide_files import SlideIdentity
from atlas_edge.embed.watch.journal import WatchJournal, pause_s
from atlas_edge.embed.watch.schema import State
from atlas_edge.system.process import ProcessId
from embed.conftest import make_scan
from embed.test_embed import KEEPS_EVERY_BATCH
from support import ROOT, RunCommand

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")

QUICK = ("--poll-seconds", "0.1", "--retry-seconds", "0.05", "--port", "0")


def events(out: Path) -> list[dict[str, Any]]:
    log = out / "atlas-embed.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def until(condition: Callable[[], Any], process: "subprocess.Popen[bytes]") -> Any:
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the watcher ended: see stderr.txt"
        time.sleep(0.01)
    return found


@contextmanager
def watching(
    folder: Path, out: Path, bundle: Path, *options: str, settle_s: float = 0.3
) -> Iterator["subprocess.Popen[bytes]"]:
    """A watcher in a process of its own, which keeps every batch at once."""
    command = [sys.executable, "-c", KEEPS_EVERY_BATCH, "watch", folder, "--bundle", bundle, "--out", out, *QUICK]
    with (folder.parent / "stderr.txt").open("ab") as stderr:
        process = subprocess.Popen(
            [*map(str, command), "--settle-seconds", str(settle_s), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=stderr,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_embeds_what_is_there_and_sets_aside_what_fails(
    mean_bundle: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.tif", "b.tif", "sub/a.tif")):
        make_scan(folder / name, number)
    (folder / "zero.svs").touch()
    whole = (folder / "a.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.svs").mkdir()
    (folder / ".hidden.tif").write_bytes(whole)
    arguments = [
        "watch",
        folder,
        "--bundle",
        mean_bundle,
        "--out",
        out,
        "--once",
        "--attempts",
        "2",
        "--settle-seconds",
        "0.3",
        *QUICK,
    ]
    done = run_command("atlas-embed", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {
        "waiting": 0, "queued": 0, "running": 0, "done": 3, "quarantined": 2,
    }  # fmt: skip
    for name in ("a", "b", "sub/a"):
        with h5py.File(out / f"{name}.h5") as file:
            assert len(file["features"]) > 0
    reports = {path.name: json.loads(path.read_text()) for path in (out / "quarantine").iterdir()}
    assert set(reports) == {"zero.svs.json", "cut.tif.json"}
    assert "0 bytes" in reports["zero.svs.json"]["error"]
    assert reports["cut.tif.json"]["attempts"] == 2
    said = events(out)
    assert sum(event["event"] == "failed" for event in said) == 4
    assert [event["slide"] for event in said if event["event"] == "ignored"] == [str((folder / "folder.svs").resolve())]
    assert (folder / "zero.svs").exists()
    assert "Traceback" not in done.stderr

    again = run_command("atlas-embed", *arguments)
    assert again.returncode == 0, again.stderr
    assert sum(event["event"] == "done" for event in events(out)) == 3, "embedded twice"
    # The journal is lost: what is embedded is not embedded again.
    for path in out.glob("atlas-embed.sqlite*"):
        path.unlink()
    assert run_command("atlas-embed", *arguments).returncode == 0
    said = events(out)
    assert sum(event["event"] == "done" for event in said) == 3
    assert sum(event["event"] == "already embedded" for event in said) == 3


def test_waits_until_a_slide_is_whole(mean_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    whole = make_scan(tmp_path / "whole.tif").read_bytes()
    with watching(folder, out, mean_bundle, settle_s=1e9) as process:
        with (folder / "grows.tif").open("wb") as file:
            file.write(whole[:-1000])
            file.flush()
            until(lambda: any(event["event"] == "found" for event in events(out)), process)
            file.write(whole[-1000:])
        time.sleep(0.3)
        assert not any(event["event"] == "queued" for event in events(out))
        (folder / "grows.tif.done").touch()
        until(lambda: any(event["event"] == "done" for event in events(out)), process)
    assert not any(event["event"] == "failed" for event in events(out))


def test_goes_on_after_a_kill(mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    make_scan(folder / "a.tif")
    make_scan(folder / "b.tif", 1)
    with watching(folder, out, mean_bundle, "--batch", "1") as process:
        until(lambda: rows_kept(out / ".a.h5.work") or rows_kept(out / ".b.h5.work"), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with watching(folder, out, mean_bundle, "--batch", "1", "--once") as process:
        process.wait(timeout=300)
        assert process.returncode == 0
    said = events(out)
    done = {Path(event["slide"]).stem: event for event in said if event["event"] == "done"}
    assert sorted(done) == ["a", "b"]
    assert sum(event["event"] == "done" for event in said) == 2
    assert sum(event["event"] == "reclaimed" for event in said) == 1
    (killed,) = [name for name, event in done.items() if event["resumed_tiles"]]
    whole = run_command(
        "atlas-embed", folder / f"{killed}.tif", "--bundle", mean_bundle, "--batch", "1", "--out", tmp_path / "whole.h5"
    )
    assert whole.returncode == 0, whole.stderr
    with h5py.File(out / f"{killed}.h5") as resumed, h5py.File(tmp_path / "whole.h5") as uninterrupted:
        for name in ("features", "coords"):
            assert resumed[name][:].tobytes() == uninterrupted[name][:].tobytes()
    assert not [path for path in out.glob(".*") if path.suffix in (".work", ".lock", ".new")]


def rows_kept(work: Path) -> int:
    """Tiles that a run under way has kept for the next one."""
    try:
        return int(json.loads((work / "progress.json").read_bytes())["rows"])
    except FileNotFoundError:
        return 0


def test_two_watchers_share_a_folder(mean_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        make_scan(tmp_path / f"{number}.tif", number)
    begin = (folder, out, mean_bundle, "--batch", "2")
    with watching(*begin) as one, watching(*begin) as two:
        until(lambda: sum(event["event"] == "start" for event in events(out)) == 2, one)
        for number in range(6):
            (tmp_path / f"{number}.tif").rename(folder / f"{number}.tif")
        until(lambda: sum(event["event"] == "done" for event in events(out)) == 6, one)
        for process in (one, two):
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            assert process.returncode == 130
    said = events(out)
    assert sorted(Path(event["slide"]).stem for event in said if event["event"] == "begin") == list("012345")
    assert sorted(Path(event["slide"]).stem for event in said if event["event"] == "done") == list("012345")
    assert len({event["process"] for event in said if event["event"] == "begin"}) == 2, "one did all the work"


def test_connections_that_open_a_new_journal_at_once_wait_for_each_other(tmp_path: Path) -> None:
    def opened(number: int) -> None:
        WatchJournal(tmp_path / f"{number // 8}.sqlite").close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(opened, range(320)))


LOOKS = SlideIdentity(size_bytes=5, mtime_ns=1)


def journal_with(tmp_path: Path, name: str = "s.svs") -> tuple[WatchJournal, Path]:
    journal, path = WatchJournal(tmp_path / "j.sqlite"), tmp_path / name
    assert journal.observe(path, [tmp_path / "s.h5"], identity=LOOKS, now=0.0, ready=False) == "found"
    assert journal.observe(path, [tmp_path / "s.h5"], identity=LOOKS, now=9.0, ready=False) is None
    assert journal.claim(9.0) is None
    assert journal.observe(path, [tmp_path / "s.h5"], identity=LOOKS, now=10.0, ready=True) == "queued"
    return journal, path


def test_journal_retries_with_a_growing_pause_then_quarantines(tmp_path: Path) -> None:
    journal, path = journal_with(tmp_path)
    now = 10.0
    for attempt, pause in ((1, 60.0), (2, 120.0)):
        job = journal.claim(now)
        assert job is not None
        assert job.attempts == attempt
        assert journal.claim(now) is None
        assert journal.fail(job, "broken", now=now, most_attempts=3, retry_s=60.0) is State.QUEUED
        assert journal.claim(now + pause - 1) is None
        now += pause
    job = journal.claim(now)
    assert job is not None
    assert journal.fail(job, "broken", now=now, most_attempts=3, retry_s=60.0) is State.QUARANTINED
    assert journal.claim(1e12) is None
    assert journal.status(now).errors[0]["error"] == "broken"
    # Replaced by another file: it starts anew.
    replaced = SlideIdentity(size_bytes=6, mtime_ns=2)
    assert journal.observe(path, [], identity=replaced, now=now, ready=True) == "changed"
    assert journal.observe(path, [], identity=replaced, now=now, ready=True) == "queued"
    job = journal.claim(now)
    assert job is not None
    assert job.attempts == 1
    journal.close()


def test_a_pause_that_has_doubled_for_ever_is_still_a_number(tmp_path: Path) -> None:
    journal, _ = journal_with(tmp_path)
    job = journal.claim(10.0, longest_pause_s=pause_s(60.0, 5000))
    assert job is not None
    late = dataclasses.replace(job, attempts=4000)
    assert journal.fail(late, "broken", now=10.0, most_attempts=5000, retry_s=60.0) is State.QUEUED
    assert journal.claim(1e9, longest_pause_s=pause_s(60.0, 5000)) is None
    journal.close()


def test_a_slide_that_kills_the_process_is_quarantined(tmp_path: Path) -> None:
    journal, path = journal_with(tmp_path)
    other = WatchJournal(tmp_path / "j.sqlite")
    here = ProcessId.current()
    # Its number has been given to a younger process, as process 1 of a container that was started again has.
    dead = dataclasses.replace(here, started=here.started - 1)
    for attempt in (1, 2, 3):
        assert journal.claim(10.0) is not None
        assert other.reclaim(most_attempts=3) == [], "this process is alive"
        journal._connection.execute("UPDATE slides SET owner = ?", (f"host/{dead}/0",))
        expected = State.QUEUED if attempt < 3 else State.QUARANTINED
        assert other.reclaim(most_attempts=3) == [(path, expected)]
    journal.close()
    other.close()


def test_a_watcher_elsewhere_is_alive_as_long_as_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, path = journal_with(tmp_path)
    elsewhere = f"container/{dataclasses.replace(ProcessId.current(), machine='elsewhere')}/0"
    other, clock = WatchJournal(tmp_path / "j.sqlite", owner=elsewhere), [100.0]
    monkeypatch.setattr("atlas_edge.embed.watch.owners.time.monotonic", lambda: clock[0])
    assert other.claim(10.0) is not None
    for _ in range(3):
        other.beat()
        assert journal.reclaim(most_attempts=3) == []
        clock[0] += 50
    assert journal.reclaim(most_attempts=3) == []
    clock[0] += 30
    assert journal.reclaim(most_attempts=3) == [(path, State.QUEUED)]
    # Too late: it is not its slide any more.
    job = journal.claim(10.0)
    assert job is not None
    other.finish(job, tiles=1, now=11.0)
    assert journal.status(11.0).counts["running"] == 1
    journal.close()
    other.close()


def test_what_could_not_be_written_down_is_queued_again_and_counts_as_no_attempt(tmp_path: Path) -> None:
    journal, path = journal_with(tmp_path)
    for _ in range(5):
        job = journal.claim(10.0)
        assert job is not None
        assert job.attempts == 1
        # Its `finish` met a full disk.
        assert journal.reclaim(most_attempts=3) == [(path, State.QUEUED)]
    journal.close()


def test_no_pause_outlasts_a_clock_that_is_set_back(tmp_path: Path) -> None:
    journal, _ = journal_with(tmp_path)
    job = journal.claim(1e6)
    assert job is not None
    journal.fail(job, "broken", now=1e6, most_attempts=3, retry_s=60.0)
    assert journal.claim(1e6 + 59, longest_pause_s=480.0) is None
    assert journal.claim(1e6 - 3600, longest_pause_s=480.0) is not None
    journal.close()


def test_no_question_that_is_asked_all_the_time_reads_every_slide(tmp_path: Path) -> None:
    journal, _ = journal_with(tmp_path)
    sql, asked = journal._connection, []
    sql.set_trace_callback(asked.append)
    journal.status(10.0)
    journal.unfinished()
    journal.reclaim(most_attempts=3)
    for _ in range(2):
        journal.claim(10.0, longest_pause_s=60.0)
    sql.set_trace_callback(None)
    questions = [text for text in asked if text.startswith("SELECT") and "slides" in text]
    assert len(questions) >= 10
    for text in questions:
        for step in sql.execute(f"EXPLAIN QUERY PLAN {text}").fetchall():
            assert step["detail"] != "SCAN slides", text
    journal.close()
