"""Options of the watcher: from a file, which slides, where its own files lie, how much room it leaves, its log."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.cli import run_app
from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.cli import app
from atlas_edge.embed.watch import on_quarantine, scan
from atlas_edge.embed.watch import watcher as module
from atlas_edge.embed.watch.event_log import EventLog
from atlas_edge.embed.watch.on_quarantine import OnQuarantine, arguments_of
from atlas_edge.embed.watch.watcher import Watcher, WatchOptions
from atlas_edge.errors import InputError, UsageError
from embed.conftest import make_scan
from embed.test_embed import MeanEncoder
from embed.test_embed_watch_faults import QUICK, events, events_of, names, watch
from support import ROOT, command_environment

h5py = pytest.importorskip("h5py")

FILE = """
folder = '{drop}'
bundle = '{bundle}'
out = '{out}'
state = '{state}'
settle-seconds = 0.1
poll-seconds = 0.1
retry-seconds = 0.05
attempts = 1
include = ["*.tif", "sub/*"]
exclude = ["c.*"]
once = true
page = false
min-tissue = 0.05
"""


def test_all_options_from_a_file_and_the_command_line_wins(
    drop: Path, mean_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a state of its own: beside the embeddings lies nothing but what belongs to them."""
    (drop / "sub").mkdir()
    make_scan(drop / "sub" / "s.tiff", 5)
    (drop / "zero.tif").touch()
    out, state, file = tmp_path / "out", tmp_path / "state", tmp_path / "watch.toml"
    file.write_text(FILE.format(drop=drop, bundle=mean_bundle, out=out, state=state))
    assert run_app(app, ["watch", "--config", str(file), "--attempts", "2", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert (counts["done"], counts["quarantined"]) == (2, 1)
    said = events(state)
    assert names(said, "done") == ["a.tif", "s.tiff"]
    assert [line["slides"] for line in said if line["event"] == "left out"] == [1]
    assert names(said, "failed") == ["zero.tif", "zero.tif"]
    with h5py.File(out / "a.h5") as written:
        assert written.attrs["min_tissue"] == 0.05
    beside = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert beside == {f"{name}{kind}" for name in ("a", "sub/s") for kind in (".h5", ".mask.png", ".overview.jpg")}
    assert [path.name for path in (state / "quarantine").iterdir()] == ["zero.tif.json"]
    assert (state / "atlas-embed.sqlite").exists()
    assert not [path for path in (state / "work").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("settle-secnds = 3\n", "settle-secnds is no option of this command"),
        ("settle-secnds = 3\n", "write settle-seconds"),
        ("[watch]\nonce = true\n", "[watch] is a table, expected options only"),
        ("once = \n", "watch.toml is no TOML: Invalid value"),
        ("attempts = 0\n", "attempts"),
        ("once = 'perhaps'\n", "perhaps"),
        ("", "--bundle"),
        (None, "is not a file, expected options in TOML"),
    ],
)
def test_a_file_of_options_that_is_wrong_is_refused(
    text: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "watch.toml"
    if text is not None:
        file.write_text(text)
    typed = [] if text == "" else ["--bundle", "nowhere", "--out", str(tmp_path)]
    assert run_app(app, ["watch", str(tmp_path), *typed, "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert told in error, error


def test_what_is_left_out_is_listed_by_nobody_and_queued_by_nobody(
    drop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["watch", str(drop), "--bundle", "b", "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert run_app(app, [*typed, "--exclude", "a.*", "--exclude", "b.*"]) == 0
    assert json.loads(capsys.readouterr().out)["slides"] == [str((drop / "c.tif").resolve())]
    assert names(watch(drop, settle_s=0.0, include=("c*",)), "done") == ["c.tif"]
    # What was waiting when it was left out is dropped, and no share is taken to be gone.
    make_scan(drop / "b.tif", 1)
    said = watch(drop, exclude=("[ab].tif",))
    assert names(said, "begin") == [] and "trouble" not in [line["event"] for line in said]


def test_unfinished_slides_are_kept_in_the_state(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, state = drop.parent / "out", drop.parent / "state"
    kept: list[str] = []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        def progress(done: int, total: int) -> None:
            kept.extend(str(file.relative_to(drop.parent)) for file in drop.parent.rglob("features.f32"))

        return embed_slide(path, *arguments, **{**options, "progress": progress})

    monkeypatch.setattr(module, "embed_slide", embed)
    options = WatchOptions(**{**QUICK, "once": True})
    Watcher([drop], out, MeanEncoder(), EmbedConfig(), options, state=state).run()
    assert set(kept) == {"state/work/.a.h5.work/features.f32", "state/work/.c.h5.work/features.f32"}


Usage = namedtuple("Usage", "total used free")


def test_waits_while_too_little_is_left_on_the_disk(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [2e9]
    begun: list[float] = []

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        begun.append(free[0])
        return embed_slide(path, *arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)
    monkeypatch.setattr(scan, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(9e9, 0, free[0]))
    threading.Timer(0.5, lambda: free.__setitem__(0, 4e9)).start()
    said = watch(drop, min_free_gb=3.0)
    assert begun == [4e9, 4e9]
    (trouble,) = [line for line in said if line["event"] == "trouble"]
    assert trouble["kind"] == "room" and "less than --min-free 3 GB are left on its disk" in trouble["error"]
    assert [line["kind"] for line in said if line["event"] == "trouble over"] == ["room"]
    free[0] = 1e9
    make_scan(drop / "b.tif", 1)
    monkeypatch.setattr(module, "_GIVE_UP_S", 0.3)
    with pytest.raises(InputError, match="less than --min-free 3 GB"):
        watch(drop, min_free_gb=3.0)


WRITE = """
import sys
from pathlib import Path
from atlas_edge.embed.watch.event_log import EventLog
log = EventLog(Path(sys.argv[1]), most_bytes=20_000, files=50)
for line in range(500):
    log.write("tick", slide=f"{sys.argv[2]}/{line}")
"""


def test_two_watchers_fill_files_of_one_log_and_lose_no_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    environ = command_environment()
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, log, number], env=environ) for number in "12"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    files = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    lines = [line["slide"] for path in files for line in events_of(path)]
    assert Counter(lines) == {f"{number}/{line}": 1 for number in (1, 2) for line in range(500)}
    # While one of them begins a new file, the other one still writes to that which is full.
    assert len(files) >= 3 and files[-1].stat().st_size < 40_000
    assert [line["event"] for line in EventLog(log, files=50).of_slide("1/0")] == ["tick"]


def test_the_oldest_file_of_a_log_goes(tmp_path: Path) -> None:
    for kept in (2, 0):
        folder = tmp_path / str(kept)
        folder.mkdir()
        log = EventLog(folder / "log.jsonl", most_bytes=100, files=kept)
        for number in range(9):
            log.write("tick", slide=str(number))
        last = events_of(folder / "log.jsonl")[-1]
        assert last["slide"] == "8"
        assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"][: kept + 1]
    first, second = (events_of(tmp_path / "2" / f"log.jsonl.{number}")[-1]["slide"] for number in (1, 2))
    assert int(first) > int(second)


SAY = "import os, sys; print(sys.argv[1:], os.environ['ATLAS_EMBED_REPORT'], file=open({place!r}, 'a'))"


def test_a_command_is_run_for_each_slide_that_is_set_aside(drop: Path) -> None:
    place = drop.parent / "it's told.txt"
    (drop / "zero 0.svs").touch()
    code = SAY.format(place=str(place)).replace('"', r"\"")
    watch(drop, on_quarantine=f'"{sys.executable}" -c "{code}" "two words"')
    report = str(drop.parent / "out" / "quarantine" / "zero 0.svs.json")
    assert place.read_text().splitlines() == [f"{['two words', report]} {report}"]
    (told,) = [line for line in events(drop.parent / "out") if line["event"] == "on quarantine"]
    assert (told["report"], told["exit_code"]) == (report, 0)


def test_a_command_that_fails_or_hangs_stops_nobody(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    begun = time.monotonic()
    for command in ("sh -c 'sleep 60'", "sh -c 'sleep 60 & wait'", "sh -c 'echo no mail today >&2; exit 3'"):
        if shutil.which("sh") is None:
            pytest.skip("no shell here")
        runs = OnQuarantine(command, log, limit_s=0.5)
        runs.told(tmp_path / "report.json")
        runs.close()
    assert time.monotonic() - begun < 20
    told = [line for line in events_of(tmp_path / "log.jsonl")]
    assert [line["error"] for line in told] == ["ended after 0.5 s", "ended after 0.5 s", "no mail today"]
    assert told[2]["exit_code"] == 3


def test_a_watcher_that_is_interrupted_waits_for_no_command(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (drop / "b.svs").touch()
    genuine = module.embed_slide

    def embed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "c.tif":
            raise KeyboardInterrupt
        return genuine(path, *arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)
    monkeypatch.setattr(on_quarantine, "_END_S", 0.1)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        watch(drop, most_attempts=1, on_quarantine=f"{sys.executable} -c 'import time; time.sleep(20)'")
    assert time.monotonic() - begun < 15
    (told,) = [line for line in events(drop.parent / "out") if line["event"] == "on quarantine"]
    assert told["error"] == "the watcher ended before it did"


def test_a_command_that_cannot_be_run_is_refused_at_the_start(drop: Path) -> None:
    for command, told in (("mail 'x", "No closing quotation"), ("nowhere-at-all x", "nowhere-at-all is not a program")):
        with pytest.raises(UsageError, match=told):
            watch(drop, on_quarantine=command)
    assert arguments_of(f"{sys.executable} a\\ b 'c d' #e") == [sys.executable, "a b", "c d", "#e"]


def test_the_file_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "slides.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    file = tmp_path / "watch.toml"
    file.write_text(shown)
    _, bound, _ = app.parse_args(["watch", "--config", str(file)], exit_on_error=False, print_error=False)
    assert bound.arguments["folders"] == [Path("/scans/one"), Path("/scans/two")]
    assert bound.arguments["options"].min_free_gb == 20


def test_several_folders_what_came_first_first(drop: Path) -> None:
    """Each with its own waiting; of one name in both, both are embedded."""
    other = drop.parent / "other"
    (other / "sub").mkdir(parents=True)
    make_scan(other / "a.tif", 7)
    (other / "sub" / "zero.svs").touch()
    watcher = Watcher(
        [drop, other], drop.parent / "out", MeanEncoder(), EmbedConfig(), WatchOptions(**{**QUICK, "once": True})
    )
    watcher.run()
    said = events(drop.parent / "out")
    assert names(said, "done") == ["a.tif", "a.tif", "c.tif"]
    assert sorted(path.name for path in (drop.parent / "out").glob("*.h5")) == ["a.h5", "a.tif.h5", "c.h5"]
    assert [path.name for path in (drop.parent / "out" / "quarantine").iterdir()] == ["sub_zero.svs.json"]
    assert watcher.view.status().live.about["folder"] == f"{drop.resolve()}, {other.resolve()}"
    # Each may have a watcher of its own again, on the same embeddings.
    assert names(watch(drop), "begin") == [] and names(watch(other), "begin") == []


def test_folders_that_hold_the_same_slides_are_refused(drop: Path) -> None:
    (drop / "sub").mkdir()
    for folders in ([drop, drop / "sub"], [drop / "sub", drop], [drop, drop]):
        with pytest.raises(UsageError, match="hold the same slides"):
            Watcher(folders, drop.parent / "out", MeanEncoder(), EmbedConfig(), WatchOptions())
    with pytest.raises(UsageError, match="no drop folder is named"):
        Watcher([], drop.parent / "out", MeanEncoder(), EmbedConfig(), WatchOptions())
