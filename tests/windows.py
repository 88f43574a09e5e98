"""What Windows does otherwise, as far as Linux can stand in for it."""

import builtins
import errno
import fcntl
import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

_FLOCK = fcntl.flock
_MEMORY_INFO = psutil.Process.memory_info


class _WindowsSys(ModuleType):
    """`sys` with another platform, for our own modules only."""

    platform = "win32"

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


@contextmanager
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block this process behaves as on Windows where our code could notice.

    - What was opened for reading cannot be flushed; a folder cannot be opened at all.
    - A file that is open or mapped is neither removed nor renamed, nor is a folder with such a file in it.
    - There is no fcntl and no resource; a lock comes from msvcrt, the peak of memory from psutil, graphics cards from
      winreg: one, beside a key that may not be read.
    - The console is cp1252, and what it lacks is an error unless somebody said otherwise.
    - Our modules read `sys.platform == "win32"`. Child processes run as they are.
    """
    # Imported here, it would ask the registry for the time zone; matplotlib and pandas import it.
    with suppress(ImportError):
        importlib.import_module("dateutil.tz")
    with monkeypatch.context() as patch:
        _flush(patch)
        _renames(patch)
        for name in ("fcntl", "resource", "pwd", "grp"):
            patch.setitem(sys.modules, name, None)
        patch.setitem(sys.modules, "msvcrt", _msvcrt())
        patch.setitem(sys.modules, "winreg", _winreg())
        patch.setattr(psutil.Process, "memory_info", _memory_info)
        platform = _WindowsSys("sys")
        for name, module in list(sys.modules.items()):
            if name.startswith("atlas_edge") and getattr(module, "sys", None) is sys:
                patch.setattr(module, "sys", platform)
        genuine = builtins.__import__

        def importing(name: str, globals: Any = None, *rest: Any, **options: Any) -> Any:
            # Modules of ours that are imported within the block.
            if name == "sys" and str((globals or {}).get("__name__", "")).startswith("atlas_edge"):
                return platform
            return genuine(name, globals, *rest, **options)

        patch.setattr(builtins, "__import__", importing)
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict"))
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                if name.startswith("atlas_edge") and getattr(module, "sys", None) is platform:
                    module.sys = sys  # type: ignore[attr-defined]


def printed(name: str = "stdout") -> str:
    """What was written to the console since the block began."""
    stream = getattr(sys, name)
    stream.flush()
    return str(stream.buffer.getvalue().decode("cp1252"))


def _memory_info(process: psutil.Process) -> SimpleNamespace:
    found = _MEMORY_INFO(process)
    return SimpleNamespace(**found._asdict(), peak_wset=found.rss)


def _flush(patch: pytest.MonkeyPatch) -> None:
    fsync, opened = os.fsync, os.open

    def strict_fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(descriptor)

    def strict_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if "dir_fd" not in options and not rest and isinstance(path, str | Path) and Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **options)

    patch.setattr(os, "fsync", strict_fsync)
    patch.setattr(os, "open", strict_open)


def _renames(patch: pytest.MonkeyPatch) -> None:
    for name in ("rename", "replace"):
        genuine = getattr(os, name)

        def moving(source: Any, target: Any, *, genuine: Any = genuine, **options: Any) -> None:
            _refuse_where_open(source)
            _refuse_where_open(target)
            genuine(source, target, **options)

        patch.setattr(os, name, moving)
    unlink = os.unlink

    def removing(path: Any, *, dir_fd: int | None = None) -> None:
        whole = path if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fsdecode(path)
        _refuse_where_open(whole)
        unlink(path, dir_fd=dir_fd)

    patch.setattr(os, "unlink", removing)


def _refuse_where_open(path: Any) -> None:
    whole = str(Path(os.fsdecode(path)).absolute())
    for held in _held():
        if held == whole or held.startswith(f"{whole}/"):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used", held)


def _held() -> list[str]:
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    found = [fields[5] for fields in maps if len(fields) == 6 and fields[5].startswith("/")]
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
        except OSError:  # the descriptor of this very listing
            continue
        # An open folder is how Linux walks a tree; Windows walks it without.
        if target.is_absolute() and not target.is_dir():
            found.append(str(target))
    return found


def _msvcrt() -> SimpleNamespace:
    def locking(descriptor: int, mode: int, size: int) -> None:
        try:
            _FLOCK(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    return SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)


def _winreg() -> SimpleNamespace:
    display = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
    card = {"DriverDesc": "NVIDIA RTX A4000", "DriverVersion": "32.0.15"}
    keys = {display: ["0000", "Properties"], f"{display}\\0000": card}

    @contextmanager
    def opened(above: str, name: str) -> Iterator[str]:
        path = f"{above}\\{name}".strip("\\")
        if path not in keys:
            raise PermissionError(errno.EACCES, "Access is denied")
        yield path

    return SimpleNamespace(
        HKEY_LOCAL_MACHINE="",
        OpenKey=opened,
        QueryInfoKey=lambda path: (len(keys[path]), 0, 0),
        EnumKey=lambda path, index: list(keys[path])[index],
        QueryValueEx=lambda path, name: (dict(keys[path])[name], 1),
    )
