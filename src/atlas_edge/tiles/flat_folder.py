"""Images directly in one folder, without labels; optionally below `train/`, `val/` and `test/`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.tiles.class_folders import files_fingerprint
from atlas_edge.tiles.decode import decode_tile
from atlas_edge.tiles.folders import has_images, image_names, read_inside, split_folders
from atlas_edge.tiles.source import TileRecord, TileSource


class FlatFolder(TileSource):
    """`ROOT/*.png`, or `ROOT/SPLIT/*.png`."""

    kind = "flat folder"

    def __init__(self, root: Path, *, split: str | None = None) -> None:
        self.root = root
        self.name = root.resolve().name
        self.split = split
        self._split_folders = {} if has_images(root) else split_folders(root)

    @staticmethod
    def fits(root: Path) -> bool:
        """Whether a folder has this form."""
        return has_images(root) or any(has_images(root / name) for name in split_folders(root).values())

    def records(self) -> Iterator[TileRecord]:
        """Sorted by split and file name."""
        if not self._split_folders:
            for name in image_names(self.root):
                yield TileRecord(id=name)
        for split in sorted(self._split_folders):
            if self.split in (None, split):
                for name in image_names(self.root / self._split_folders[split]):
                    yield TileRecord(id=f"{self._split_folders[split]}/{name}", split=split)

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
