"""Walking folders of images in a fixed order with flat memory."""

import heapq
import os
from collections.abc import Iterator
from pathlib import Path

from atlas_edge.errors import InputError
from atlas_edge.tiles.decode import MAX_TILE_BYTES, is_image_name

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

_CHUNK = 65_536


def image_names(folder: Path, *, chunk: int = _CHUNK) -> Iterator[str]:
    """Names of the images directly in a folder, sorted, holding at most `chunk` of them.

    A folder with more is scanned once for every `chunk` names: a million names sorted at once would take 100 MB.
    """
    last = ""
    while True:
        with os.scandir(folder) as entries:
            names = heapq.nsmallest(chunk, (e.name for e in entries if e.name > last and is_image_name(e.name)))
        yield from names
        if len(names) < chunk:
            return
        last = names[-1]


def has_images(folder: Path) -> bool:
    """Whether an image lies directly in a folder."""
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) for entry in entries)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))


def split_folders(folder: Path) -> dict[str, str]:
    """Split name -> subfolder name, where every subfolder is named as a split; else empty."""
    names = subfolders(folder)
    found = {SPLIT_NAMES[name.lower()]: name for name in names if name.lower() in SPLIT_NAMES}
    return found if len(found) == len(names) else {}


def read_inside(root: Path, name: str) -> bytes:
    """Bytes of a file below `root`.

    Raises:
        InputError: The name leaves the folder, or the file is missing, unreadable or too large for a tile.
    """
    path = root / checked_name(name)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_TILE_BYTES:
            raise InputError(f"tile {name} has {size_bytes:,} bytes, expected at most {MAX_TILE_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"tile {name} cannot be read: {error.strerror or error}", hint=f"copy it again into {root}"
        ) from error


def checked_name(name: str) -> str:
    """Return a relative name with forward slashes that stays below its root.

    Raises:
        InputError: Absolute, with `..`, a drive, a backslash or a NUL.
    """
    parts = name.split("/")
    if not parts[0] or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        raise InputError(
            f"tile name {name!r} leaves its tile set, expected a relative path", hint="do not use this set"
        )
    return name


def checked_mpp(value: object, where: str) -> float | None:
    """Return µm per pixel as a number, or None where nothing is stated.

    Raises:
        InputError: No number, or none that a scanner could have.
    """
    if value is None:
        return None
    try:
        mpp = float(str(value))
    except ValueError:
        mpp = 0.0
    if not 0 < mpp < 1000:
        raise InputError(f"{where} has mpp {value!r}, expected µm per pixel such as 0.5", hint="mend the column mpp")
    return mpp
