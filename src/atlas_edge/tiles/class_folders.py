"""One folder a class, as in NCT-CRC-HE-100K; optionally below `train/`, `val/` and `test/`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.tiles.decode import decode_tile
from atlas_edge.tiles.folders import has_images, image_names, read_inside, split_folders, subfolders
from atlas_edge.tiles.source import TileRecord, TileSource


class ClassFolders(TileSource):
    """`ROOT/CLASS/*.png`, or `ROOT/SPLIT/CLASS/*.png`. The folder's name is the label; slides are not known."""

    kind = "class folders"

    def __init__(self, root: Path, *, split: str | None = None) -> None:
        self.root = root
        self.name = root.resolve().name
        self.split = split
        self._split_folders = split_folders(root)

    @staticmethod
    def fits(root: Path) -> bool:
        """Whether a folder has this form."""
        return any(has_images(folder) for _, _, folder in _class_folders(root, split_folders(root)))

    def records(self) -> Iterator[TileRecord]:
        """Sorted by split, class and file name."""
        for split, label, folder in _class_folders(self.root, self._split_folders):
            if self.split not in (None, split):
                continue
            prefix = folder.relative_to(self.root).as_posix()
            for name in image_names(folder):
                yield TileRecord(id=f"{prefix}/{name}", label=label, split=split)

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Decode one file; see `TileSource.read`."""
        return decode_tile(read_inside(self.root, record.id), name=record.id)

    def place(self, record: TileRecord) -> tuple[str, str]:
        """Each tile is a file of its own."""
        return f"{self.root}/{record.id}", ""

    def splits(self) -> frozenset[str]:
        """The split folders that are there."""
        return frozenset(self._split_folders)

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the files (their contents are not read)."""
        return files_fingerprint(self.root, self.records())


def files_fingerprint(root: Path, records: Iterator[TileRecord]) -> str:
    """SHA-256 over ids and sizes of tiles that are files of their own.

    Raises:
        InputError: A file vanished.
    """
    digest = hashlib.sha256()
    for record in records:
        try:
            size_bytes = (root / record.id).stat().st_size
        except OSError as error:
            raise InputError(f"tile {record.id} cannot be read: {error.strerror or error}") from error
        digest.update(f"{record.id}\0{size_bytes}\n".encode())
    return digest.hexdigest()


def _class_folders(root: Path, splits: dict[str, str]) -> Iterator[tuple[str | None, str, Path]]:
    if not splits:
        for label in subfolders(root):
            yield None, label, root / label
    for split in sorted(splits):
        for label in subfolders(root / splits[split]):
            yield split, label, root / splits[split] / label
