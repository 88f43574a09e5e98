import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_edge.atomic import atomic_folder, write_atomic
from atlas_edge.errors import UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(UsageError, match="--overwrite"), atomic_folder(out):
        pass
    assert names(out) == ["old"]
    with atomic_folder(out, overwrite=True) as partial:
        (partial / "new").write_text("1")
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(OSError), atomic_folder(out, overwrite=True) as partial:
        (partial / "new").write_text("1")
        raise OSError("disk full")
    assert names(out) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(UsageError, match="is a file"), atomic_folder(tmp_path / "bundle", overwrite=True):
        pass
    assert (tmp_path / "bundle").read_text() == "mine"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
@pytest.mark.parametrize("overwrite", [False, True])
def test_next_run_clears_what_a_killed_run_left(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "bundle"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("1")
    code = (
        "import sys, time; from pathlib import Path; from atlas_edge.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), overwrite=True) as partial:\n"
        "    (partial / 'a').write_text('1'); print('ready', flush=True); time.sleep(60)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    child = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, env=environ)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"ready"
    with atomic_folder(tmp_path / "other"):
        assert any(".bundle.partial-" in name for name in names(tmp_path)), "a running export is left alone"
    child.kill()
    child.wait()
    child.stdout.close()
    assert out.exists() == overwrite
    with atomic_folder(out, overwrite=True) as partial:
        (partial / "b").write_text("2")
    assert names(tmp_path) == ["bundle", "other"]
    assert names(out) == ["b"]


def test_folder_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    # As after a kill between the two renames: the old folder is aside, nothing is in its place.
    aside = tmp_path / f".bundle.replaced-999999999-{int(time.time())}"
    aside.mkdir()
    (aside / "old").write_text("1")
    with pytest.raises(UsageError, match="--overwrite"), atomic_folder(tmp_path / "bundle"):
        pass
    assert names(tmp_path / "bundle") == ["old"]


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["file"]
