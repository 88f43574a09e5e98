"""HDF5 tile sets: PatchCamelyon's pairs of files, and PLISM's file a slide."""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.tiles.decode import check_pixels
from atlas_edge.tiles.folders import SPLIT_NAMES
from atlas_edge.tiles.source import TileRecord, TileSource

_PCAM = re.compile(r"camelyonpatch_level_2_split_(?P<split>\w+)_x\.h5")
_SUFFIXES = (".h5", ".hdf5")
_PCAM_LABELS = ("normal", "tumour")
_OPEN_FILES = 4
_ROWS = 4096


class Hdf5Tiles(TileSource):
    """PatchCamelyon (`camelyonpatch_level_2_split_SPLIT_{x,y}.h5`) or PLISM (a file a slide, a uint8 key a tile).

    PLISM's file names say stain and scanner (`GIV_S60_to_GMH_S60.tif.h5`) and its keys the registered position.
    A single file or a folder of them; a folder is read as PatchCamelyon when one of its files is named so.
    """

    kind = "hdf5"

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        require_module("h5py", extra="tiles")
        self.name = path.resolve().stem if path.is_file() else path.resolve().name
        self.split = split
        self._files = _Files()
        self._paths = [path] if path.is_file() else hdf5_paths(path)
        patches = [path for path in self._paths if _PCAM.fullmatch(path.name)]
        self._paths = patches or self._paths

    def records(self) -> Iterator[TileRecord]:
        """Sorted by file, then in the file's order."""
        for number, path in enumerate(self._paths):
            if _pcam_split(path) is None:
                yield from self._slide_records(number, path)
            elif self.split in (None, _pcam_split(path)):
                yield from self._patch_records(number, path)

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Read one tile's pixels; see `TileSource.read`."""
        number, key = record.locator
        path = self._paths[int(number)]
        with self._files.lock:
            file = self._files.open(path)
            try:
                pixels = file["x"][key] if isinstance(key, int) else file[key][()]
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"tile {record.id} cannot be read from {path.name}: {error}", hint="copy the file again"
                ) from error
        return check_pixels(np.asarray(pixels), name=record.id)

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The file, and its key or row."""
        number, key = record.locator
        return str(self._paths[int(number)]), str(key)

    def splits(self) -> frozenset[str]:
        """PatchCamelyon's splits; PLISM has none."""
        return frozenset(split for split in map(_pcam_split, self._paths) if split is not None)

    def fingerprint(self) -> str:
        """SHA-256 over ids and labels, and the files' sizes."""
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(f"{path.name}\0{path.stat().st_size}\n".encode())
        for record in self.records():
            digest.update(f"{record.id}\0{record.label}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _patch_records(self, number: int, path: Path) -> Iterator[TileRecord]:
        split = _pcam_split(path)
        with self._files.lock:
            count = int(_dataset(self._files.open(path), "x", path).shape[0])
        labels_path = path.with_name(path.name.replace("_x.h5", "_y.h5"))
        for start in range(0, count, _ROWS):
            stop = min(start + _ROWS, count)
            labels: list[str | None] = [None] * (stop - start)
            if labels_path.is_file():
                with self._files.lock:
                    stored = _dataset(self._files.open(labels_path), "y", labels_path)
                    if stored.shape[0] != count:
                        raise InputError(f"{labels_path} has {stored.shape[0]} labels for {count} tiles")
                    labels = [_PCAM_LABELS[int(value)] for value in stored[start:stop].reshape(stop - start, -1)[:, 0]]
            for row, label in enumerate(labels, start):
                yield TileRecord(id=f"{path.stem}:{row}", label=label, split=split, locator=(number, row))

    def _slide_records(self, number: int, path: Path) -> Iterator[TileRecord]:
        slide = path.name.removesuffix(path.suffix).removesuffix(".tif")
        named = slide.split("_")
        stain, scanner = named[:2] if "_to_" in slide else (None, None)
        with self._files.lock:
            keys = list(self._files.open(path))
        if not keys:
            raise InputError(f"{path} holds no tiles, expected one uint8 dataset a tile")
        for key in keys:
            yield TileRecord(
                id=f"{slide}/{key}", group=slide, stain=stain, scanner=scanner, position=key, locator=(number, key)
            )


def hdf5_paths(folder: Path) -> list[Path]:
    """HDF5 files of a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)


class _Files:
    """HDF5 files, opened when first read; the last few stay open. Hold `lock` while using one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def open(self, path: Path) -> Any:
        import h5py

        file = self._open.pop(path, None)
        if file is None:
            try:
                file = h5py.File(path, "r")
            except OSError as error:
                raise InputError(f"{path} is no readable HDF5 file: {error}", hint="copy the file again") from error
        self._open[path] = file
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def close(self) -> None:
        with self.lock:
            while self._open:
                self._open.popitem()[1].close()


def _dataset(file: Any, key: str, path: Path) -> Any:
    if key not in file:
        raise InputError(f"{path} has no dataset {key!r}, it has {', '.join(file) or 'none'}")
    return file[key]


def _pcam_split(path: Path) -> str | None:
    match = _PCAM.fullmatch(path.name)
    return SPLIT_NAMES.get(match["split"], match["split"]) if match else None
