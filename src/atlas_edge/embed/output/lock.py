"""One writer for an output: a lock that its process cannot outlive."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.process import ProcessId

_HELD = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
_NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})
_TEXT_BYTES = 256
_BY_NAME = ".locked"
_UNWRITTEN_S = 60.0


class OutputBusy(UsageError):
    """Another process is writing the output: no fault of the slide."""


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside an output.

    The operating system frees it when the process ends, however it ends. Where the file system has no locks (NFS
    without its lock service, some SMB servers) the file itself is the lock, and names its process.

    Raises:
        OutputBusy: Another process holds it.
        InputError: The file system fails otherwise than by having no locks.
    """
    path = out.parent / f".{out.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, path = _take(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(ProcessId.current()).encode())
        yield
    finally:
        if path.suffix == _BY_NAME:
            os.close(descriptor)
        # Removed while it is held: whoever opened this very file meanwhile notices in `_take`. Windows refuses.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        if path.suffix != _BY_NAME:
            os.close(descriptor)


def _take(path: Path) -> tuple[int, Path]:
    while True:
        descriptor, is_new = _open(path)
        try:
            locked = _lock(descriptor)
            holder = None if locked else _holder(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise InputError(f"{path} cannot be locked: {error.strerror}", hint="choose another --out") from error
        if not locked:
            os.close(descriptor)
        if locked is False or (holder is not None and holder.is_running()):
            raise _busy(path, holder, "wait for it, or choose another --out")
        if locked is None:
            # What was there before is somebody's, who may have got a lock where there are too few.
            with suppress(PermissionError):
                if is_new:
                    path.unlink(missing_ok=True)
            return _take_by_name(path.with_suffix(_BY_NAME))
        try:
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor, path
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """Open the file, and say whether it was not there."""
    with suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False


def _holder(descriptor: int) -> ProcessId | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return ProcessId.parse(os.read(descriptor, _TEXT_BYTES).decode(errors="replace"))


def _take_by_name(path: Path) -> tuple[int, Path]:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), path
        except FileExistsError:
            pass
        try:
            holder = ProcessId.parse(path.read_text(encoding="utf-8", errors="replace"))
            unwritten = holder is None and time.time() - path.stat().st_mtime > _UNWRITTEN_S
        except FileNotFoundError:
            continue
        if unwritten or (holder is not None and holder.is_running() is False):
            path.unlink(missing_ok=True)
            continue
        raise _busy(path, holder, f"wait for it; if it has ended on another machine, remove {path}")


def _busy(path: Path, holder: ProcessId | None, hint: str) -> OutputBusy:
    who = f"another process{f' ({holder.pid})' if holder else ''}"
    return OutputBusy(f"{who} is writing {path.name[1:].rpartition('.')[0]}", hint=hint)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock is ours; None where there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Far behind the process id, which others may read.
            os.lseek(descriptor, 2**20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True
