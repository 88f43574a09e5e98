"""Walking folders of images in a fixed order with flat memory, and reading tiles that are files of their own."""

import hashlib
import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.system.paths import printable
from atlas_edge.tiles.decode import MAX_TILE_BYTES, decode_tile, is_image_name
from atlas_edge.tiles.source import TileRecord, TileSource

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
    """Split name -> subfolder name; empty where no subfolder is named as a split.

    Subfolders without images (`docs`) do not count.

    Raises:
        InputError: Two subfolders are one split (`val`, `validation`), or folders of images lie beside the splits: they
            may be classes or not belong there.
    """
    found: dict[str, str] = {}
    others = []
    for name in subfolders(folder):
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            others.append(name)
        elif split in found:
            raise InputError(
                f"{folder} holds {found[split]} and {name}, which are both the split {split}",
                hint=f"give {folder / name}, or put their tiles into one folder",
            )
        else:
            found[split] = name
    strange = [name for name in others if found and _holds_images(folder / name)]
    if strange:
        raise InputError(
            f"{folder} holds {', '.join(found.values())}, named as splits, beside images in {', '.join(strange[:5])}: "
            "neither splits nor classes",
            hint=f"give {folder / next(iter(found.values()))}, or move {strange[0]} elsewhere",
        )
    return found


class FileTiles(TileSource):
    """Tiles that are files of their own below one folder; a record's id is the path from there."""

    def __init__(self, root: Path, *, split: str | None = None) -> None:
        self.root = root
        self.name = printable(root.resolve().name)
        self.split = split
        self._split_folders = split_folders(root)

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Decode one file; see `TileSource.read`."""
        return decode_tile(read_file(self._path(record), record.id), name=record.id)

    def place(self, record: TileRecord) -> tuple[str, str]:
        """Each tile is a file of its own."""
        return self._path(record), ""

    def splits(self) -> frozenset[str]:
        """The split folders that are there."""
        return frozenset(self._split_folders)

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the files (their contents are not read)."""
        digest = hashlib.sha256()
        for record in self.records():
            try:
                size_bytes = os.stat(self._path(record)).st_size  # noqa: PTH116 - a million of them: no Path for each
            except OSError as error:
                raise InputError(f"tile {record.id} cannot be read: {error.strerror or error}") from error
            digest.update(f"{record.id}\0{size_bytes}\n".encode())
        return digest.hexdigest()

    def _record(self, name: str, *, label: str | None = None, split: str | None = None) -> TileRecord:
        """The record of a file; its name is kept where the id had to be another."""
        tile_id = printable(name)
        locator = () if tile_id == name else (name,)
        return TileRecord(id=tile_id, label=label and printable(label), split=split, locator=locator)

    def _path(self, record: TileRecord) -> str:
        return f"{self.root}/{record.locator[0] if record.locator else record.id}"


def read_inside(root: Path, name: str) -> bytes:
    """Bytes of a file below `root`.

    Raises:
        InputError: The name leaves the folder, or the file is missing, unreadable or too large for a tile.
    """
    return read_file(f"{root}/{checked_name(name)}", name)


def read_file(path: str, name: str) -> bytes:
    """Bytes of a tile's file.

    Raises:
        InputError: Missing, unreadable, no file or too large for a tile.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - one a tile
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"tile {name} is no file", hint=f"take {path} out of the tile set")
        if found.st_size > MAX_TILE_BYTES:
            raise InputError(f"tile {name} has {found.st_size:,} bytes, expected at most {MAX_TILE_BYTES:,}")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"tile {name} cannot be read: {reason}", hint=f"copy {path} again") from error


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


def _holds_images(folder: Path) -> bool:
    """Whether images lie in a folder, as a class, or in its folders, as classes of a split."""
    return has_images(folder) or any(has_images(folder / name) for name in subfolders(folder))
