"""The watcher where the plan, the folder or the disk is not what it was: it waits, refuses or goes on."""

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_edge.embed import EmbedConfig, watch_owners
from atlas_edge.embed.watch_journal import WatchJournal
from atlas_edge.errors import UsageError
from atlas_edge.process import ProcessId
from embed.test_embed_watch_faults import names, watch

pytest.importorskip("h5py")


def test_a_scale_that_is_given_no_more_is_another_plan(drop: Path) -> None:
    watch(drop, EmbedConfig(mpp=0.25))
    with pytest.raises(UsageError, match=r"given_mpp 0\.25, now none"):
        watch(drop)
    # The journal is lost: these slides say their scale, so that none was given to them.
    for file in (drop.parent / "out").glob("atlas-embed.sqlite*"):
        file.unlink()
    assert names(watch(drop), "begin") == []


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
