"""Images directly in one folder, without labels; optionally below `train/`, `val/` and `test/`."""

from collections.abc import Iterator
from pathlib import Path

from atlas_edge.errors import InputError
from atlas_edge.tiles.forms.folders import FileTiles, has_images, image_names, split_folders, subfolders
from atlas_edge.tiles.source import TileRecord


class FlatFolder(FileTiles):
    """`ROOT/*.png`, or `ROOT/SPLIT/*.png`.

    Raises:
        InputError: Images lie in `ROOT` and in folders of it: which are the tiles is not known.
    """

    kind = "flat folder"

    def __init__(self, root: Path, *, split: str | None = None) -> None:
        within = next((name for name in subfolders(root) if has_images(root / name)), None)
        if within is not None and has_images(root):
            raise InputError(
                f"{root} holds images beside a folder of images, {within}: which are the tiles?",
                hint=f"give {root / within}, or move the images that are no tiles elsewhere",
            )
        super().__init__(root, split=split)

    @staticmethod
    def fits(root: Path) -> bool:
        """Whether a folder has this form."""
        return has_images(root) or any(has_images(root / name) for name in split_folders(root).values())

    def records(self) -> Iterator[TileRecord]:
        """Sorted by split and file name."""
        if not self._split_folders:
            for name in image_names(self.root):
                yield self._record(name)
        for split, folder in sorted(self._split_folders.items()):
            if self.split in (None, split):
                for name in image_names(self.root / folder):
                    yield self._record(f"{folder}/{name}", split=split)
