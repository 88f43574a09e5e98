"""Folders and files that appear whole or not at all."""

import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.process import ProcessId

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|replaced)-\d+-(?P<process>\d+-\d+-.+)$")
# Threads of one process may write the same name.
_numbers = itertools.count()
# Of a process that cannot be asked after: no writer rests for so long.
_ABANDONED_S = 7 * 24 * 3600
# Scanners of viruses open what has just been written, and Windows renames no folder with an open file in it.
_RENAME_WAITS_S = (0.1, 0.3, 1.0, 3.0) if sys.platform == "win32" else ()


@contextmanager
def atomic_folder(out: Path, *, marks: tuple[str, ...], overwrite: bool = False) -> Iterator[Path]:
    """Write a folder beside its final place and rename it last.

    Leftovers of killed runs beside `out` are cleared first (and an old folder that a kill left moved aside is
    moved back), so the next run leaves no litter. Where `out` is a link, the folder that it points to is written.

    Args:
        out: Final folder.
        marks: Files by which a folder of this kind is known: only such a one is replaced.
        overwrite: Replace an existing folder; the old one stays until the new one is complete.

    Yields:
        The temporary sibling to write into.

    Raises:
        UsageError, InputError: As `check_vacant`.
        InputError: A program holds a file of the old folder open, on a system that then renames nothing.
    """
    out = out.resolve()
    clear_leftovers(out)
    check_vacant(out, marks=marks, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(out, "partial")
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_vacant(out: Path, *, marks: tuple[str, ...], overwrite: bool) -> None:
    """Refuse where `atomic_folder` could not put its result, before any work is done.

    Raises:
        UsageError: `out` is a file; a folder with something in it, and `overwrite` is false or it is of another kind;
            the folder that the process works in; or a mount point.
        InputError: Nothing may be written beside it.
    """
    out = out.resolve()
    elsewhere = "choose another folder"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder to write", hint=elsewhere)
    if out == Path.cwd() or out in Path.cwd().parents:
        raise UsageError(f"{out} is the folder that you are in, which cannot be replaced", hint="give one inside it")
    if sys.platform != "win32" and out.is_mount():
        raise UsageError(f"{out} is a mount point, which cannot be replaced", hint="give a folder inside it")
    there = next(parent for parent in out.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{out} cannot be written: {there} takes no files", hint=elsewhere)
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} exists and is not empty", hint=f"add --overwrite to replace it, or {elsewhere}")
    missing = [name for name in marks if not (out / name).is_file()]
    if missing:
        raise UsageError(
            f"{out} holds no {missing[0]}: it is not what this command writes, and --overwrite leaves it alone",
            hint=elsewhere,
        )


def clear_leftovers(out: Path) -> None:
    """Remove what killed runs left beside `out`; move back an old folder whose replacement never came.

    What may belong to a run of another machine or container is left alone until nothing in it has changed for a week.
    """
    for entry, kind, running in _leftovers(out.parent, out.name):
        if kind == "replaced" and not out.exists():
            entry.rename(out)
        elif running is False or _is_abandoned(entry):
            shutil.rmtree(entry, ignore_errors=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file beside its final place, flush it to disk and rename it."""
    _clear_files(path.parent.resolve())
    partial = _sibling(path, "partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(file: Path, to: Path) -> None:
    """Rename a file over another one, which Windows refuses for as long as a program holds that one open."""
    for wait_s in (*_RENAME_WAITS_S, None):
        try:
            file.replace(to)
            return
        except PermissionError:
            if wait_s is None:
                raise
            time.sleep(wait_s)


def _sibling(out: Path, kind: str) -> Path:
    return out.parent / f".{out.name}.{kind}-{next(_numbers)}-{ProcessId.current()}"


def _leftovers(folder: Path, name: str | None = None) -> list[tuple[Path, str, bool | None]]:
    """What is not this moment's work: path, kind, and whether its process runs; None where that cannot be known."""
    if not folder.is_dir():
        return []
    found: list[tuple[Path, str, bool | None]] = []
    for entry in sorted(folder.iterdir()):
        parts = _LEFTOVER.match(entry.name)
        process = ProcessId.parse(parts["process"]) if parts and name in (None, parts["name"]) else None
        if parts and process is not None:
            running = process.is_running()
            if not running:
                found.append((entry, parts["kind"], running))
    return found


def _is_abandoned(entry: Path) -> bool:
    try:
        newest = max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))
    except OSError:  # it changes while it is looked at
        return False
    return time.time() - newest > _ABANDONED_S


@cache
def _clear_files(folder: Path) -> None:
    # Once a process: some write into a folder of thousands of files at every step.
    for entry, _, running in _leftovers(folder):
        if entry.is_file() and (running is False or _is_abandoned(entry)):
            with suppress(OSError):
                entry.unlink()


def _put_in_place(partial: Path, out: Path) -> None:
    if not out.exists():
        _rename(partial, out)
        _sync_names(out.parent)
        return
    old = _sibling(out, "replaced")
    _rename(out, old)
    try:
        _rename(partial, out)
    except BaseException:
        old.rename(out)
        raise
    _sync_names(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _rename(folder: Path, to: Path) -> None:
    for wait_s in (*_RENAME_WAITS_S, None):
        try:
            folder.rename(to)
            return
        except PermissionError as error:
            if wait_s is None:
                raise InputError(
                    f"{folder} cannot be renamed: {error.strerror}",
                    hint="end the program that holds a file in it open, and check permissions",
                ) from error
            time.sleep(wait_s)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            _sync_names(path)
        elif path.is_file():
            # Windows flushes what it may write only.
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system has a way to."""
    if sys.platform != "win32":
        with suppress(OSError):  # not every network share can
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
