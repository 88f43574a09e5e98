"""The watcher where the plan, the folder or the disk is not what it was: it waits, refuses or goes on."""

import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.output.files import DiskFull
from atlas_edge.embed.watch import owners as watch_owners
from atlas_edge.embed.watch import scan as watch_scan
from atlas_edge.embed.watch import watcher as module
from atlas_edge.embed.watch.journal import WatchJournal
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.system.process import ProcessId
from embed.test_embed import MeanEncoder
from embed.test_embed_watch_faults import events, names, watch

pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")


def test_a_scale_that_is_given_no_more_is_another_plan(drop: Path) -> None:
    watch(drop, EmbedConfig(mpp=0.25))
    with pytest.raises(UsageError, match=r"given_mpp 0\.25, now none"):
        watch(drop)
    # The journal is lost: these slides say their scale, so that none was given to them.
    for file in (drop.parent / "out").glob("atlas-embed.sqlite*"):
        file.unlink()
    assert names(watch(drop), "begin") == []


@pytest.mark.parametrize("asked", [{"overlap": 8}, {"stain": "ihc"}, {"min_tissue": 0.3}, {"most_tiles": 9}])
def test_a_folder_without_a_journal_is_taken_with_any_option(drop: Path, asked: dict[str, Any]) -> None:
    assert names(watch(drop, EmbedConfig(**asked)), "done") == ["a.tif", "c.tif"]
    with pytest.raises(UsageError, match=next(iter(asked))):
        watch(drop)


def test_a_watcher_of_a_boot_before_does_not_keep_the_next_from_another_plan(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = drop.parent / "out"
    watch(drop, bundle="a" * 64)
    owner = f"host/{replace(ProcessId.current(), machine='boot-before')}/0"
    with sqlite3.connect(out / "atlas-embed.sqlite") as sql:
        sql.execute("UPDATE slides SET state = 'running', owner = ? WHERE path LIKE '%c.tif'", (owner,))
    sql.close()
    monkeypatch.setattr(watch_owners, "_LOOK_S", 0.05)

    def beat() -> None:
        with closing(WatchJournal(out / "atlas-embed.sqlite", owner=owner)) as other:
            other.beat()

    timer = threading.Timer(0.5, beat)
    timer.start()
    with pytest.raises(UsageError, match="by another plan"):
        watch(drop, bundle="b" * 64, re_embed=True)
    timer.join()
    monkeypatch.setattr(watch_owners, "_DEAD_S", 0.3)
    said = watch(drop, bundle="b" * 64, re_embed=True)
    assert sum(line["event"] == "waiting" for line in said) == 1
    assert names(said, "done") == ["a.tif", "c.tif"]


def test_a_share_that_is_not_mounted_for_a_moment_is_no_folder_without_slides(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = drop.parent / "away"

    def unmount() -> None:
        drop.rename(away)
        drop.mkdir()

    def mount() -> None:
        drop.rmdir()
        away.rename(drop)

    timers = [threading.Timer(0.3, unmount), threading.Timer(1.0, mount)]
    for timer in timers:
        timer.start()
    said = watch(drop, settle_s=0.6)
    assert names(said, "done") == ["a.tif", "c.tif"]
    assert names(said, "gone") == []
    # And one that stays away is an error.
    unmount()
    with sqlite3.connect(drop.parent / "out" / "atlas-embed.sqlite") as sql:
        sql.execute("UPDATE slides SET state = 'queued'")
    sql.close()
    monkeypatch.setattr(module, "_GIVE_UP_S", 0.3)
    with pytest.raises(InputError, match="none of 2 slides that were waiting is there any more"):
        watch(drop)


def test_a_full_disk_is_tried_again_before_once_gives_up(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        tried.append(path.name)
        if tried.count(path.name) == 1:
            raise DiskFull("the disk is full")
        if path.name == "a.tif":
            raise InputError("of no form")
        return embed_slide(path, *arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)
    monkeypatch.setattr(module, "_GIVE_UP_S", 2.0)
    (drop / "c.tif").unlink()
    said = watch(drop, retry_s=2.0, most_attempts=1)
    assert names(said, "disk full") == ["a.tif"]
    assert names(said, "failed") == ["a.tif"]
    assert [line["kind"] for line in said if line["event"] == "trouble over"] == ["disk"]


def test_what_is_no_output_is_never_replaced_unasked(drop: Path) -> None:
    notes = drop.parent / "out" / "a.h5"
    notes.parent.mkdir()
    notes.write_bytes(b"my own notes")
    said = watch(drop)
    assert names(said, "done") == ["c.tif"]
    assert names(said, "failed") == ["a.tif", "a.tif"]
    reason = next(line["error"] for line in said if line["event"] == "failed")
    assert "a.h5 is no output of atlas-embed that can be read" in reason
    assert "add --re-embed to replace it, or choose another --out" in reason
    assert notes.read_bytes() == b"my own notes"
    assert names(watch(drop), "begin") == [], "it is left alone until it changes, or is told to be replaced"
    assert names(watch(drop, re_embed=True), "done") == ["a.tif"]


def test_an_output_of_another_slide_that_is_put_in_a_place_stays(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = drop.parent / "out"

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        result = embed_slide(path, *arguments, **options)
        if path.name == "a.tif":
            shutil.copy2(out / "a.h5", out / "c.h5")
        return result

    monkeypatch.setattr(module, "embed_slide", embed)
    said = watch(drop, re_embed=True)
    assert names(said, "done") == ["a.tif"]
    reason = next(line["error"] for line in said if line["event"] == "failed")
    assert "c.h5 was made of a.tif\n  fix: choose another --out" in reason


@pytest.mark.parametrize("ends", [True, False])
def test_an_encoder_that_is_broken_is_no_fault_of_any_slide(
    drop: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    genuine, calls = MeanEncoder.encode, []

    def encode(self: MeanEncoder, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(tiles))
        if not ends or len(calls) <= 8:
            raise RuntimeError("CUDA error: device lost")
        return genuine(self, tiles)

    monkeypatch.setattr(MeanEncoder, "encode", encode)
    monkeypatch.setattr(watch_scan, "_FIRST_PAUSE_S", 0.02)
    if ends:
        said = watch(drop, most_attempts=1)
        assert names(said, "done") == ["a.tif", "c.tif"]
        assert [line["kind"] for line in said if line["event"] == "trouble over"] == ["encoder"]
    else:
        monkeypatch.setattr(module, "_GIVE_UP_S", 0.5)
        with pytest.raises(RuntimeMissing, match="the encoder fails, on white tiles, too: RuntimeError: CUDA error"):
            watch(drop, most_attempts=1)
        said = events(drop.parent / "out")
    assert names(said, "failed") == []
    assert len(names(said, "encoder failed")) >= (4 if ends else 1)
    (trouble,) = [line for line in said if line["event"] == "trouble"]
    assert "RuntimeError: CUDA error: device lost" in trouble["traceback"]


def test_a_slide_that_the_encoder_fails_on_alone_is_quarantined(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, slides = MeanEncoder.encode, []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        slides.append(path.name)
        return embed_slide(path, *arguments, **options)

    def encode(self: MeanEncoder, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if slides[-1] == "a.tif" and tiles.min() < 255:
            raise RuntimeError("an illegal memory access was encountered")
        return genuine(self, tiles)

    monkeypatch.setattr(module, "embed_slide", embed)
    monkeypatch.setattr(MeanEncoder, "encode", encode)
    said = watch(drop)
    assert names(said, "done") == ["c.tif"]
    assert names(said, "failed") == ["a.tif", "a.tif"]
    assert not any(line["event"] == "trouble" for line in said)


def test_slides_without_a_scale_are_tried_again_once_it_is_given(drop: Path) -> None:
    image = np.random.default_rng(0).integers(90, 180, (640, 960, 3), dtype=np.uint8)
    tifffile.imwrite(drop / "silent.tif", image, tile=(64, 64), photometric="rgb", metadata=None)
    (drop / "broken.tif").write_bytes(b"x")
    said = watch(drop)
    assert Counter(names(said, "failed")) == {"silent.tif": 2, "broken.tif": 2}
    assert names(watch(drop), "begin") == []
    said = watch(drop, EmbedConfig(mpp=0.5))
    assert names(said, "begin") == names(said, "done") == ["silent.tif"]
