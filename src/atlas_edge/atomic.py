"""Folders and files that appear whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from atlas_edge.errors import UsageError

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<pid>\d+)-(?P<started>\d+)$")


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder beside its final place and rename it last.

    Leftovers of killed runs beside `out` are cleared first (and an old folder that a kill left moved aside is
    moved back), so the next run leaves no litter. Python's temporary files go inside while it is open.

    Args:
        out: Final folder.
        overwrite: Replace an existing folder; the old one stays until the new one is complete.

    Yields:
        The temporary sibling to write into.

    Raises:
        UsageError: `out` exists and `overwrite` is false, or is a file.
    """
    clear_leftovers(out)
    check_vacant(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(out, "partial")
    partial.mkdir()
    scratch = partial / ".scratch"
    scratch.mkdir()
    outer_tempdir, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        yield partial
        shutil.rmtree(scratch)
        _sync(partial)
        if out.exists():
            old = _sibling(out, "replaced")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        tempfile.tempdir = outer_tempdir
        shutil.rmtree(partial, ignore_errors=True)


def check_vacant(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError where `atomic_folder` could not put its result, before any work is done."""
    if out.is_file():
        raise UsageError(f"{out} is a file, expected a folder to write", hint="choose another --out")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UsageError(
            f"{out} exists and is not empty", hint="add --overwrite to replace it, or choose another --out"
        )


def clear_leftovers(out: Path) -> None:
    """Remove what killed runs left beside `out`; move back an old folder whose replacement never came."""
    if not out.parent.is_dir():
        return
    for entry in sorted(out.parent.iterdir()):
        found = _LEFTOVER.match(entry.name)
        if found is None or found["name"] != out.name or _is_running(int(found["pid"]), int(found["started"])):
            continue
        if found["kind"] == "replaced" and not out.exists():
            entry.rename(out)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file beside its final place, flush it to disk and rename it."""
    partial = _sibling(path, "partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sibling(out: Path, kind: str) -> Path:
    process = psutil.Process()
    return out.parent / f".{out.name}.{kind}-{process.pid}-{int(process.create_time())}"


def _is_running(pid: int, started: int) -> bool:
    # The start time tells a reused process id from the process that left the folder.
    try:
        return abs(int(psutil.Process(pid).create_time()) - started) <= 1
    except psutil.NoSuchProcess:
        return False


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
