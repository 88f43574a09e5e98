import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas_edge.errors import InputError, UsageError
from atlas_edge.system import atomic
from atlas_edge.system.atomic import check_vacant, clear_leftovers, write_atomic
from atlas_edge.system.process import ProcessId

MARK = "manifest.json"
HERE = ProcessId.current()
ENDED = dataclasses.replace(HERE, started=HERE.started - 3600)
ELSEWHERE = dataclasses.replace(HERE, machine="another-host")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    with atomic.atomic_folder(out, marks=(MARK,), overwrite=overwrite) as partial:
        yield partial


def make_old(out: Path) -> Path:
    out.mkdir(parents=True)
    (out / MARK).write_text("old")
    return out


def leftover(out: Path, kind: str, process: ProcessId, *, age_days: float = 0.0) -> Path:
    folder = out.parent / f".{out.name}.{kind}-0-{process}"
    make_old(folder)
    for path in (folder / MARK, folder):
        changed = path.stat().st_mtime - age_days * 24 * 3600
        os.utime(path, (changed, changed))
    return folder


def test_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with atomic_folder(out) as partial:
        (partial / "a").write_text("1")
        assert not out.exists()
    assert names(tmp_path) == ["bundle"]
    assert names(out) == ["a"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "bundle") as partial:
        (partial / "a").write_text("1")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    out = make_old(tmp_path / "bundle")
    with pytest.raises(UsageError, match="--overwrite"), atomic_folder(out):
        pass
    assert names(out) == [MARK]
    with atomic_folder(out, overwrite=True) as partial:
        (partial / "new").write_text("1")
        assert names(out) == [MARK]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds no manifest\.json"), atomic_folder(study, overwrite=True):
        pass
    assert (study / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with atomic_folder(tmp_path / "bundle") as partial:
        (partial / "a").write_text("1")
    assert names(tmp_path / "bundle") == ["a"]


def test_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    out = make_old(tmp_path / "bundle")
    with pytest.raises(OSError), atomic_folder(out, overwrite=True) as partial:
        (partial / "new").write_text("1")
        raise OSError("disk full")
    assert names(out) == [MARK]
    assert names(tmp_path) == ["bundle"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on Windows, where a file in the new folder is still open.
    genuine = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError(13, "Access is denied")
        return genuine(self, target)

    out = make_old(tmp_path / "bundle")
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="end the program"), atomic_folder(out, overwrite=True):
        pass
    assert names(out) == [MARK]
    assert names(tmp_path) == ["bundle"]


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(UsageError, match="is a file"), atomic_folder(tmp_path / "bundle", overwrite=True):
        pass
    assert (tmp_path / "bundle").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_behind_a_link_the_folder_that_it_points_to_is_replaced(tmp_path: Path) -> None:
    real = make_old(tmp_path / "disk" / "bundle")
    (tmp_path / "bundle").symlink_to(real)
    with atomic_folder(tmp_path / "bundle", overwrite=True) as partial:
        (partial / "new").write_text("1")
    assert (tmp_path / "bundle").is_symlink()
    assert names(tmp_path) == ["bundle", "disk"]
    assert names(tmp_path / "disk") == ["bundle"]
    assert names(real) == ["new"]


@pytest.mark.parametrize("out", [".", ".."])
def test_the_working_folder_is_refused(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="the folder that you are in"):
        check_vacant(Path(out), marks=(MARK,), overwrite=True)


@pytest.mark.skipif(sys.platform == "win32", reason="flushes files only")
def test_files_are_flushed_through_writable_handles_and_names_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    genuine, flushed = os.fsync, set()

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink() if sys.platform == "linux" else Path(str(descriptor))
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        assert path.is_dir() or mode == os.O_RDWR
        flushed.add(path.name.partition(".partial")[0])
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "bundle") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("1")
    if sys.platform == "linux":
        assert flushed == {"file", "sub", ".bundle", tmp_path.name}


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    both_open = threading.Barrier(2)

    def write(name: str) -> None:
        with atomic_folder(tmp_path / name) as partial:
            both_open.wait(timeout=20)
            (partial / "file").write_text(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / name / "file").read_text() for name in ("one", "two")] == ["one", "two"]
    assert names(tmp_path) == ["one", "two"]
    assert tempfile.gettempdir() == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
@pytest.mark.parametrize("overwrite", [False, True])
def test_next_run_clears_what_a_killed_run_left(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "bundle"
    if overwrite:
        make_old(out)
    code = (
        "import sys, time; from pathlib import Path; from atlas_edge.system.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), marks=(sys.argv[2],), overwrite=True) as partial:\n"
        "    (partial / 'a').write_text('1'); print('ready', flush=True); time.sleep(60)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    child = subprocess.Popen([sys.executable, "-c", code, str(out), MARK], stdout=subprocess.PIPE, env=environ)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"ready"
    clear_leftovers(out)
    assert any(".bundle.partial-" in name for name in names(tmp_path)), "a running export is left alone"
    child.kill()
    child.wait()
    child.stdout.close()
    assert out.exists() == overwrite
    with atomic_folder(out, overwrite=True) as partial:
        (partial / "b").write_text("2")
    assert names(tmp_path) == ["bundle"]
    assert names(out) == ["b"]


@pytest.mark.parametrize(
    ("process", "age_days", "left"),
    [(ENDED, 0, False), (HERE, 0, True), (ELSEWHERE, 0, True), (ELSEWHERE, 6, True), (ELSEWHERE, 8, False)],
)
def test_only_what_nobody_writes_is_cleared(process: ProcessId, age_days: float, left: bool, tmp_path: Path) -> None:
    folder = leftover(tmp_path / "bundle", "partial", process, age_days=age_days)
    other = leftover(tmp_path / "other", "partial", ENDED)
    clear_leftovers(tmp_path / "bundle")
    assert folder.exists() == left
    assert other.exists()


@pytest.mark.parametrize("process", [ENDED, ELSEWHERE])
def test_folder_moved_aside_by_a_killed_run_comes_back(process: ProcessId, tmp_path: Path) -> None:
    # As after a kill, or a power cut, between the two renames: the old folder is aside, nothing is in its place.
    leftover(tmp_path / "bundle", "replaced", process)
    with pytest.raises(UsageError, match="--overwrite"), atomic_folder(tmp_path / "bundle"):
        pass
    assert names(tmp_path / "bundle") == [MARK]


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["file"]


def test_files_of_killed_runs_are_cleared(tmp_path: Path) -> None:
    for name, process in (("ended", ENDED), ("elsewhere", ELSEWHERE)):
        (tmp_path / f".{name}.partial-0-{process}").write_text("half")
    write_atomic(tmp_path / "file", b"one")
    assert names(tmp_path) == [f".elsewhere.partial-0-{ELSEWHERE}", "file"]


def test_threads_write_the_same_file(tmp_path: Path) -> None:
    texts = [bytes([letter]) * 200_000 for letter in b"abcdefgh"]
    threads = [threading.Thread(target=write_atomic, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in texts
    assert names(tmp_path) == ["file"]


def test_a_file_that_is_open_for_a_moment_is_replaced_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a scanner of viruses holds what was just written."""
    replace, refused = Path.replace, []

    def held(self: Path, target: Path) -> Path:
        if len(refused) < 2:
            refused.append(self)
            raise PermissionError(13, "held open")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(atomic, "_RENAME_WAITS_S", (0.0, 0.0))
    atomic.write_atomic(tmp_path / "journal", b"new")
    assert (tmp_path / "journal").read_bytes() == b"new" and len(refused) == 2
    refused.clear()
    monkeypatch.setattr(atomic, "_RENAME_WAITS_S", (0.0,))
    with pytest.raises(PermissionError):
        atomic.write_atomic(tmp_path / "journal", b"newer")
    assert (tmp_path / "journal").read_bytes() == b"new" and names(tmp_path) == ["journal"]


def test_long_names_leave_room_for_what_tells_their_writer(tmp_path: Path) -> None:
    name = "n" * 200
    write_atomic(tmp_path / name, b"data")
    with atomic_folder(tmp_path / "folder" / name) as partial:
        (partial / MARK).write_text("{}")
    assert (tmp_path / "folder" / name / MARK).exists()
    assert names(tmp_path) == ["folder", name]
