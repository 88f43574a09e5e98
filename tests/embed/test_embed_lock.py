"""One writer for an output, whatever the file system says of locks."""

import errno
import os
from pathlib import Path

import pytest

from atlas_edge.embed.output.lock import OutputBusy, output_lock
from atlas_edge.errors import InputError
from windows import windows

fcntl = pytest.importorskip("fcntl", reason="this is Windows")


def refuse_locks(monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_lock_that_another_one_holds_stays_where_locks_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5"
    with output_lock(out):
        refuse_locks(monkeypatch, errno.ENOLCK)
        with pytest.raises(OutputBusy, match=rf"another process \({os.getpid()}\)"), output_lock(out):
            pass
        assert (tmp_path / ".out.h5.lock").exists()


@pytest.mark.parametrize("failure", [errno.EIO, errno.EBADF, errno.ESTALE])
def test_a_failure_does_not_mean_that_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    refuse_locks(monkeypatch, failure)
    with (
        pytest.raises(InputError, match=rf"cannot be locked: {os.strerror(failure)}"),
        output_lock(tmp_path / "out.h5"),
    ):
        pass


def test_the_holder_is_named_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.h5"
    with (
        windows(monkeypatch),
        output_lock(out),
        pytest.raises(OutputBusy, match=rf"another process \({os.getpid()}\)"),
        output_lock(out),
    ):
        pass
