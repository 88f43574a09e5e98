"""One folder a class, as in NCT-CRC-HE-100K; optionally below `train/`, `val/` and `test/`."""

from collections.abc import Iterator
from pathlib import Path

from atlas_edge.tiles.forms.folders import FileTiles, has_images, image_names, split_folders, subfolders
from atlas_edge.tiles.source import TileRecord


class ClassFolders(FileTiles):
    """`ROOT/CLASS/*.png`, or `ROOT/SPLIT/CLASS/*.png`. The folder's name is the label; slides are not known."""

    kind = "class folders"

    @staticmethod
    def fits(root: Path) -> bool:
        """Whether a folder has this form."""
        return any(has_images(root / folder) for _, _, folder in _class_folders(root, split_folders(root)))

    def records(self) -> Iterator[TileRecord]:
        """Sorted by split, class and file name."""
        for split, label, folder in _class_folders(self.root, self._split_folders):
            if self.split in (None, split):
                for name in image_names(self.root / folder):
                    yield self._record(f"{folder}/{name}", label=label, split=split)


def _class_folders(root: Path, splits: dict[str, str]) -> Iterator[tuple[str | None, str, str]]:
    """Split, label and path of each folder of a class."""
    if not splits:
        for label in subfolders(root):
            yield None, label, label
    for split in sorted(splits):
        for label in subfolders(root / splits[split]):
            yield split, label, f"{splits[split]}/{label}"
