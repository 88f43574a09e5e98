"""A watcher in this process, with an encoder that costs nothing: one fault after another, none of which stops it."""

import errno
import json
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.jobs import SlideFailure
from atlas_edge.embed.watch import watcher as module
from atlas_edge.embed.watch.event_log import EventLog
from atlas_edge.embed.watch.journal import WatchJournal
from atlas_edge.embed.watch.schema import is_on_network
from atlas_edge.embed.watch.watcher import Watcher, WatchOptions
from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.process import ProcessId
from embed.conftest import make_scan
from embed.test_embed import MeanEncoder
from support import disk_full_after

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

DEAD = replace(ProcessId.current(), started=ProcessId.current().started - 1)
QUICK: dict[str, Any] = {"settle_s": 0.1, "poll_s": 0.05, "retry_s": 0.05, "most_attempts": 2}


def watch(folder: Path, config: EmbedConfig | None = None, *, bundle: str = "", **options: Any) -> list[dict[str, Any]]:
    """Watch once; the events of this run."""
    out = folder.parent / "out"
    before = len(events(out))
    watcher = Watcher(
        [folder],
        out,
        MeanEncoder(),
        config or EmbedConfig(),
        WatchOptions(**{**QUICK, "once": True, **options}),
        bundle_sha256=bundle,
    )
    timer = threading.Timer(60, watcher.stop)
    timer.start()
    try:
        watcher.run()
    finally:
        timer.cancel()
    return events(out)[before:]


def events(out: Path) -> list[dict[str, Any]]:
    log = out / "atlas-embed.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def names(said: list[dict[str, Any]], event: str) -> list[str]:
    return sorted(Path(line["slide"]).name for line in said if line["event"] == event)


def breaks_on(monkeypatch: pytest.MonkeyPatch, name: str, error: Callable[[], Exception]) -> None:
    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise error()
        return embed_slide(path, *arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError(), MemoryError(), RuntimeError("CUDA error")])
def test_whatever_a_slide_raises_is_an_attempt(drop: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    make_scan(drop / "b.tif", 2)
    breaks_on(monkeypatch, "b.tif", lambda: error)
    said = watch(drop)
    assert names(said, "done") == ["a.tif", "c.tif"]
    assert names(said, "failed") == ["b.tif", "b.tif"]
    failed = next(line for line in said if line["event"] == "failed")
    assert type(error).__name__ in failed["error"]
    assert "Traceback" in failed["traceback"]
    assert names(watch(drop), "begin") == [], "started again, it begins with the quarantined slide"


def test_a_batch_goes_on_after_whatever_a_slide_raises(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.embed import workers

    genuine = workers.embed_slide_for

    def embed(wanted: Any, path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.tif":
            raise AttributeError("'NoneType' object has no attribute 'tags'")
        return genuine(wanted, path, *arguments, **options)

    monkeypatch.setattr(workers, "embed_slide_for", embed)
    jobs = [(drop / name, {0: drop / f"{name}.h5"}) for name in ("a.tif", "c.tif")]
    first, second = workers.embed_here(jobs, {0: (MeanEncoder(), "")}, EmbedConfig(), lambda *_: None)
    assert isinstance(first, SlideFailure)
    assert (first.exit_code, first.reason) == (5, "AttributeError: 'NoneType' object has no attribute 'tags'")
    assert not isinstance(second, SlideFailure)


def test_a_blank_slide_is_done_with_nothing_to_embed(drop: Path) -> None:
    glass = np.random.default_rng(0).normal((243, 242, 244), 2, (640, 960, 3)).clip(0, 255).astype(np.uint8)
    written = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(drop / "b.tif", glass, resolution=(2e4, 2e4), **written)
    said = watch(drop)
    assert names(said, "done") == ["a.tif", "c.tif"]
    assert names(said, "no tissue") == ["b.tif"]
    assert names(said, "failed") == []
    assert not (drop.parent / "out" / "quarantine").exists()
    assert names(watch(drop), "begin") == []


def test_a_name_that_is_no_utf8(drop: Path) -> None:
    odd = drop / os.fsdecode(b"b\xfcro.tif")
    try:
        shutil.copy2(drop / "a.tif", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    broken = drop / os.fsdecode(b"b\xf6se.svs")
    broken.write_bytes(b"no slide")
    said = watch(drop)
    assert names(said, "done") == ["a.tif", odd.name, "c.tif"]
    assert names(said, "failed") == [broken.name, broken.name]
    report = drop.parent / "out" / "quarantine" / f"{broken.name}.json"
    assert r"b\xf6se.svs is of no slide form" in json.loads(report.read_bytes())["error"]
    with h5py.File(drop.parent / "out" / os.fsdecode(b"b\xfcro.h5")) as file:
        assert file.attrs["slide"] == r"b\xfcro.tif"
    assert names(watch(drop), "begin") == []


def test_a_slide_that_goes_before_it_settles_is_forgotten(drop: Path) -> None:
    def rename() -> None:
        (drop / "a.tif").rename(drop / "final.tif")

    timer = threading.Timer(0.3, rename)
    timer.start()
    said = watch(drop, settle_s=1.0)
    assert names(said, "gone") == ["a.tif"]
    assert names(said, "done") == ["c.tif", "final.tif"]


def test_a_share_that_is_gone_for_a_moment(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, calls = drop.parent / "away", []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(path.name)
        if len(calls) == 1:
            drop.rename(away)
            threading.Timer(0.5, lambda: away.rename(drop)).start()
            raise OSError(5, "Input/output error")
        # A fast machine would be through before the folder is looked at again.
        until = time.monotonic() + 30
        while time.monotonic() < until and all(line["event"] != "trouble over" for line in events(drop.parent / "out")):
            time.sleep(0.05)
        return embed_slide(path, *arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)
    said = watch(drop)
    assert names(said, "done") == ["a.tif", "c.tif"]
    assert names(said, "failed") == [], "no fault of the slide"
    assert Counter(line["event"] for line in said)["trouble"] == 1
    assert Counter(line["event"] for line in said)["trouble over"] == 1


def test_a_journal_that_cannot_be_written_for_a_while(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it looks, claims and notes what became of a slide: nothing is lost and nothing embedded twice."""
    left = {"observe": 1, "claim": 1, "finish": 1}

    def fails(name: str) -> None:
        genuine = getattr(WatchJournal, name)

        def method(self: WatchJournal, *arguments: Any, **options: Any) -> Any:
            if left[name]:
                left[name] -= 1
                raise sqlite3.OperationalError("database or disk is full")
            return genuine(self, *arguments, **options)

        monkeypatch.setattr(WatchJournal, name, method)

    for name in left:
        fails(name)
    said = watch(drop)
    assert names(said, "done") == ["a.tif", "c.tif"]
    assert names(said, "begin") == ["a.tif", "c.tif"]
    assert all(line["kind"] in ("folder", "journal") for line in said if line["event"] == "trouble")
    assert sum("disk is full" in line.get("error", "") for line in said) >= 2


def test_no_room_for_the_lock_is_no_fault_of_the_slide(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, refused = os.write, []

    def write(descriptor: int, data: bytes) -> int:
        if data == str(ProcessId.current()).encode() and len(refused) < 3:
            refused.append(data)
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(descriptor, data)

    monkeypatch.setattr("atlas_edge.embed.output.lock.os.write", write)
    said = watch(drop)
    assert names(said, "done") == ["a.tif", "c.tif"]
    assert names(said, "failed") == []
    assert len(names(said, "disk full")) == 3


def test_once_ends_where_the_disk_stays_full(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.embed.output.files import DiskFull

    monkeypatch.setattr(module, "_GIVE_UP_S", 0.5)
    breaks_on(monkeypatch, "a.tif", lambda: DiskFull("the disk is full"))
    breaks_on(monkeypatch, "c.tif", lambda: DiskFull("the disk is full"))
    monkeypatch.setattr(module, "embed_slide", lambda *_, **__: (_ for _ in ()).throw(DiskFull("the disk is full")))
    with pytest.raises(InputError, match="disk is full"):
        watch(drop)
    monkeypatch.undo()
    assert names(watch(drop), "done") == ["a.tif", "c.tif"]


def test_once_ends_where_the_folder_stays_away(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GIVE_UP_S", 0.5)
    threading.Timer(0.2, lambda: drop.rename(drop.parent / "away")).start()
    with pytest.raises(InputError, match="cannot be looked at"):
        watch(drop, settle_s=30.0)


def test_once_does_not_wait_for_markers_that_never_come(drop: Path) -> None:
    (drop / "a.tif.done").touch()
    assert names(watch(drop, marker_only=True), "done") == ["a.tif"]


def test_another_plan_is_refused_and_embeds_again_when_told_to(drop: Path) -> None:
    out = drop.parent / "out"
    watch(drop, bundle="a" * 64)
    for config, bundle, message in (
        (EmbedConfig(), "b" * 64, "bundle_sha256 aaaaaaaaaaaa, now bbbbbbbbbbbb"),
        (EmbedConfig(tile_mpp=1.0), "a" * 64, "tile_mpp 0.5, now 1.0"),
        (EmbedConfig(min_tissue=0.5), "a" * 64, "min_tissue 0.1, now 0.5"),
    ):
        with pytest.raises(UsageError, match=message):
            watch(drop, config, bundle=bundle)
    # The journal is lost: the outputs say it. What was refused leaves no trace in a new one.
    for file in out.glob("atlas-embed.sqlite*"):
        file.unlink()
    with pytest.raises(UsageError, match="bundle_sha256"):
        watch(drop, bundle="b" * 64)
    assert names(watch(drop, bundle="a" * 64), "begin") == []
    assert names(watch(drop, bundle="b" * 64, re_embed=True), "done") == ["a.tif", "c.tif"]
    for name in "ac":
        with h5py.File(out / f"{name}.h5") as file:
            assert file.attrs["bundle_sha256"] == "b" * 64
    assert names(watch(drop, bundle="b" * 64, re_embed=True), "begin") == []


def test_a_share_that_is_mounted_elsewhere_is_not_embedded_again(drop: Path) -> None:
    watch(drop)
    moved = drop.parent / "moved"
    drop.rename(moved)
    said = watch(moved)
    assert names(said, "moved") == ["a.tif", "c.tif"]
    assert names(said, "begin") == []


def test_folders_of_three_scanners_share_an_out(drop: Path) -> None:
    for number in "12":
        shutil.copytree(drop, drop.parent / number)
        make_scan(drop.parent / number / "a.tif", int(number))
        watch(drop.parent / number)
    said = watch(drop)
    outs = sorted(path.name for path in (drop.parent / "out").glob("a*.h5"))
    assert outs == ["a.h5", "a.tif-2.h5", "a.tif.h5"]
    assert names(said, "done") == ["a.tif", "c.tif"]


def test_what_another_folders_watcher_left_behind_is_not_ours(drop: Path) -> None:
    """Killed too often in a slide of another folder, whose watcher will see to it."""
    elsewhere = drop.parent / "elsewhere"
    drop.rename(elsewhere)
    watch(elsewhere)
    with sqlite3.connect(drop.parent / "out" / "atlas-embed.sqlite") as sql:
        sql.execute("UPDATE slides SET state = 'running', attempts = 9, owner = ?", (f"host/{DEAD}/0",))
    sql.close()
    drop.mkdir()
    make_scan(drop / "b.tif", 2)
    assert names(watch(drop), "done") == ["b.tif"]


def test_a_journal_that_cannot_be_read_at_the_start_is_told(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def adopt(*_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(WatchJournal, "adopt", adopt)
    with pytest.raises(InputError, match="cannot be written: database is locked"):
        watch(drop)


def test_a_kill_between_output_and_journal_embeds_nothing_twice(drop: Path) -> None:
    """The output of c is whole, and nobody has said so."""
    from atlas_edge.embed.slide_files import slide_identity

    out = drop.parent / "out"
    watch(drop)
    with sqlite3.connect(out / "atlas-embed.sqlite") as sql:
        sql.execute("UPDATE slides SET state = 'running', owner = ? WHERE path LIKE '%c.tif'", (f"host/{DEAD}/0",))
    sql.close()
    before = slide_identity(out / "c.h5")
    said = watch(drop)
    assert names(said, "reclaimed") == ["c.tif"]
    assert names(said, "already embedded") == ["c.tif"]
    assert slide_identity(out / "c.h5") == before


def test_waits_until_all_files_of_a_slide_have_settled(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (drop / "s").mkdir()
    (drop / "s.mrxs").write_bytes(b"index")
    begun: list[int] = []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".mrxs":
            begun.append((drop / "s" / "Data.dat").stat().st_size)
            raise InputError("of no form")
        return embed_slide(path, *arguments, **options)

    def write(left: int) -> None:
        with (drop / "s" / "Data.dat").open("ab") as file:
            file.write(b"x" * 1000)
        if left > 1:
            threading.Timer(0.15, write, (left - 1,)).start()

    monkeypatch.setattr(module, "embed_slide", embed)
    write(8)
    watch(drop, settle_s=0.6, most_attempts=1)
    assert begun == [8000]
    write(1)
    watch(drop, most_attempts=1)
    assert begun == [8000, 9000], "one of its files has changed: it is tried again"


def test_events_outlast_a_full_disk(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    log = EventLog(tmp_path / "log.jsonl")
    log.write("first", slide="a.tif")
    size = (tmp_path / "log.jsonl").stat().st_size
    with disk_full_after(size + 10):
        log.write("second")
        log.write("third")
    log.write("fourth")
    assert [line["event"] for line in events_of(tmp_path / "log.jsonl")] == ["first", "second", "third", "fourth"]


def events_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_journal_of_the_version_before_is_read(drop: Path) -> None:
    """Its slides are known, and their outputs say by which plan they were embedded."""
    out = drop.parent / "out"
    watch(drop, bundle="a" * 64)
    with sqlite3.connect(out / "atlas-embed.sqlite") as sql:
        sql.execute("DROP TABLE meta")
        sql.execute("ALTER TABLE slides DROP COLUMN beat")
        sql.execute("ALTER TABLE slides DROP COLUMN folder")
        sql.execute("PRAGMA user_version = 0")
    sql.close()
    with pytest.raises(UsageError, match="bundle_sha256"):
        watch(drop, bundle="b" * 64)
    assert names(watch(drop, bundle="a" * 64), "begin") == []


def test_a_journal_of_a_later_version_is_refused(drop: Path) -> None:
    out = drop.parent / "out"
    out.mkdir()
    with sqlite3.connect(out / "atlas-embed.sqlite") as sql:
        sql.execute("PRAGMA user_version = 99")
    sql.close()
    with pytest.raises(InputError, match="newer atlas-edge"):
        watch(drop)


def test_no_shared_memory_on_a_network_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    part = namedtuple("part", "mountpoint fstype opts")
    mounts = [part("/", "ext4", "rw"), part(str(tmp_path), "nfs4", "rw"), part(f"{tmp_path}/local", "xfs", "rw")]
    monkeypatch.setattr("atlas_edge.embed.watch.schema.psutil.disk_partitions", lambda all: mounts)
    is_on_network.cache_clear()
    assert is_on_network(tmp_path / "out" / "j.sqlite")
    assert not is_on_network(tmp_path / "local" / "j.sqlite")
    WatchJournal(tmp_path / "j.sqlite").close()
    with sqlite3.connect(tmp_path / "j.sqlite") as sql:
        assert sql.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    sql.close()
    is_on_network.cache_clear()
