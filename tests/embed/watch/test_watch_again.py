"""Slides that a person has tried again or forgotten, by a watcher that runs or by the next one."""

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.cli import run_app
from atlas_edge.embed.cli import app
from atlas_edge.embed.slide_files import slide_identity
from atlas_edge.embed.watch import watcher as module
from atlas_edge.embed.watch.again import forget, retry
from atlas_edge.embed.watch.journal import WatchJournal
from atlas_edge.embed.watch.schema import JOURNAL
from atlas_edge.errors import InputError
from embed.test_embed_watch_faults import DEAD, events, names, watch

pytest.importorskip("h5py")


@pytest.fixture
def out(drop: Path) -> Path:
    """A journal of two slides that were embedded and one in a subfolder that was set aside."""
    (drop / "sub").mkdir()
    (drop / "sub" / "bad[1].svs").touch()
    watch(drop, most_attempts=1)
    return drop.parent / "out"


def did(told: object) -> list[tuple[str, str, bool]]:
    return [(Path(item.slide).name, item.did, item.refused) for item in told]  # type: ignore[attr-defined]


def test_a_slide_that_was_set_aside_is_tried_again(drop: Path, out: Path) -> None:
    report = out / "quarantine" / "sub_bad[1].svs.json"
    said = json.loads(report.read_text())
    assert said["again"][0] == f"atlas-embed retry {out} 'bad[1].svs'"
    bad = drop / "sub" / "bad[1].svs"
    looks = slide_identity(bad)
    for name in ("bad[1].svs", "sub/bad[1].svs", str(bad), "*.svs", "sub/*"):
        assert did(retry(out, [name], dry_run=True)) == [("bad[1].svs", "is tried again", False)]
    assert report.exists() and names(watch(drop), "begin") == []
    assert did(retry(out, ["*"])) == [("bad[1].svs", "is tried again", False)]
    assert not report.exists()
    assert slide_identity(bad) == looks, "what the scanner wrote is left alone"
    said = watch(drop, most_attempts=1)
    assert names(said, "begin") == names(said, "failed") == ["bad[1].svs"]
    assert report.exists()


def test_what_succeeds_later_has_no_report_any_more(drop: Path, out: Path) -> None:
    shutil.copy2(drop / "a.tif", drop / "sub" / "bad[1].svs")
    assert names(watch(drop), "done") == ["bad[1].svs"]
    assert list((out / "quarantine").iterdir()) == []


def test_what_cannot_be_tried_again_is_left_and_said(drop: Path, out: Path) -> None:
    assert did(retry(out, ["a.tif"])) == [
        ("a.tif", f"is embedded; to have that done again, remove {out}/a.h5 first", True)
    ]
    (out / "a.h5").unlink()
    assert did(retry(out, ["a.tif"])) == [("a.tif", "is tried again", False)]
    assert names(watch(drop), "done") == ["a.tif"]
    with (
        closing(WatchJournal(out / JOURNAL, drop.resolve())) as journal,
        closing(sqlite3.connect(out / JOURNAL)) as sql,
    ):
        (out / "c.h5").unlink()
        retry(out, ["c.tif"])
        job = journal.claim(1e12)
        assert job is not None and job.path.name == "c.tif"
        assert did(retry(out, ["c.tif"])) == did(forget(out, ["c.tif"])) == [("c.tif", "is being embedded", True)]
        assert did(retry(out, ["c.*", "bad*"])) == [("bad[1].svs", "is tried again", False)]
        # Its watcher was killed.
        sql.execute("UPDATE slides SET owner = ? WHERE state = 'running'", (f"host/{DEAD}/0",))
        sql.commit()
        assert did(retry(out, ["c.tif"])) == [("c.tif", "is tried again", False)]
    (drop / "c.tif").unlink()
    assert did(retry(out, ["c.tif"])) == [("c.tif", "is not there; mount its folder, or forget it", True)]


def test_what_is_forgotten_is_found_anew_and_not_embedded_twice(drop: Path, out: Path) -> None:
    (drop / "sub" / "bad[1].svs").unlink()
    with pytest.raises(InputError, match=r"no slide in the journal of .* matches nothing"):
        forget(out, ["a.tif", "nothing"])
    anew = "is forgotten; it is still in the drop folder, where a watcher finds it anew"
    assert did(forget(out, ["a.tif", "bad?1?.svs"])) == [("a.tif", anew, False), ("bad[1].svs", "is forgotten", False)]
    assert not list((out / "quarantine").iterdir())
    said = watch(drop)
    assert names(said, "already embedded") == ["a.tif"] and names(said, "begin") == []
    assert [line["what"] for line in events(out) if line["event"] == "told"] == [anew, "is forgotten"]


def test_by_the_command_line(drop: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["retry", str(out), "bad*", "a.tif", "--json"]) == 2
    said = capsys.readouterr()
    assert [slide["refused"] for slide in json.loads(said.out)["slides"]] == [True, False]
    assert "1 of 2 slides were left as they are" in said.err and "bad[1].svs is tried again" in said.err
    assert run_app(app, ["forget", str(drop), "a.tif"]) == 5
    assert "holds no atlas-embed.sqlite, expected a watcher's --out" in capsys.readouterr().err
    assert not (drop / JOURNAL).exists()
    with closing(sqlite3.connect(out / JOURNAL)) as sql:
        sql.execute("CREATE TRIGGER no BEFORE UPDATE ON slides BEGIN SELECT RAISE(ABORT, 'readonly database'); END")
        assert run_app(app, ["retry", str(out), "bad[1].svs"]) == 5
    assert "cannot be written: readonly database" in capsys.readouterr().err
    assert run_app(app, ["retry", str(out), "bad*"]) == 0
    assert "none of these slides has failed" in capsys.readouterr().err


def test_a_watcher_that_runs_takes_it_at_once(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, calls = module.embed_slide, []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(path.name)
        if calls == ["a.tif"]:
            threading.Timer(0.3, retry, (drop.parent / "out", ["a.tif"])).start()
            raise InputError("broken for now")
        return genuine(path, *arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)
    said = watch(drop, retry_s=3600.0)
    assert names(said, "done") == ["a.tif", "c.tif"] and names(said, "told") == ["a.tif"]
