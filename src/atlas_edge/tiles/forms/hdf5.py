"""HDF5 tile sets: PatchCamelyon's pairs of files, and PLISM's file a slide."""

import hashlib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.system.paths import printable
from atlas_edge.tiles.decode import MAX_TILE_PIXELS
from atlas_edge.tiles.forms.folders import SPLIT_NAMES
from atlas_edge.tiles.source import TileRecord, TileSource

_PCAM = re.compile(r"camelyonpatch_level_2_split_(?P<split>\w+)_x\.h5")
_SUFFIXES = (".h5", ".hdf5")
_PCAM_LABELS = ("normal", "tumour")
_OPEN_FILES = 4
_ROWS = 4096
# HDF5 unpacks whole chunks.
_MOST_CHUNK_BYTES = 256 * 2**20
# Deflate packs no byte into less than a 1032th of it: what claims more was never written.
_MOST_PACKED = 1032


class Hdf5Tiles(TileSource):
    """PatchCamelyon (`camelyonpatch_level_2_split_SPLIT_{x,y}.h5`) or PLISM (a file a slide, a uint8 key a tile).

    PLISM's file names say stain and scanner (`GIV_S60_to_GMH_S60.tif.h5`) and its keys the registered position.
    A single file or a folder of them; a folder is read as PatchCamelyon when one of its files is named so.
    """

    kind = "hdf5"

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        require_module("h5py", extra="tiles")
        self.name = printable(path.resolve().stem if path.is_file() else path.resolve().name)
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
        with self._files.use(path) as file:
            if isinstance(key, int):
                pixels = _tiles(file, path)[key]
            else:
                pixels = _dataset(file, key, path, axes="height, width, 3")[()]
        tile: NDArray[np.uint8] = pixels
        return tile

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
            digest.update(f"{printable(path.name)}\0{path.stat().st_size}\n".encode())
        for record in self.records():
            digest.update(f"{record.id}\0{record.label}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _patch_records(self, number: int, path: Path) -> Iterator[TileRecord]:
        split = _pcam_split(path)
        with self._files.use(path) as file:
            count = int(_tiles(file, path).shape[0])
        labels_path = path.with_name(path.name.replace("_x.h5", "_y.h5"))
        labelled = labels_path.is_file()
        for start in range(0, count, _ROWS):
            stop = min(start + _ROWS, count)
            labels: list[str | None] = [None] * (stop - start)
            if labelled:
                with self._files.use(labels_path) as file:
                    labels = _pcam_labels(file, labels_path, range(start, stop), count)
            for row, label in enumerate(labels, start):
                yield TileRecord(id=f"{printable(path.stem)}:{row}", label=label, split=split, locator=(number, row))

    def _slide_records(self, number: int, path: Path) -> Iterator[TileRecord]:
        slide = printable(path.name.removesuffix(path.suffix).removesuffix(".tif"))
        named = slide.split("_")
        stain, scanner = named[:2] if "_to_" in slide else (None, None)
        with self._files.use(path) as file:
            keys = list(file)
        if not keys:
            raise InputError(f"{path} holds no tiles, expected one uint8 dataset a tile")
        for key in keys:
            if not isinstance(key, str):
                raise InputError(f"{path} has a tile {key!r}, expected names in UTF-8")
            yield TileRecord(
                id=f"{slide}/{key}", group=slide, stain=stain, scanner=scanner, position=key, locator=(number, key)
            )


def hdf5_paths(folder: Path) -> list[Path]:
    """HDF5 files of a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)


class _Files:
    """HDF5 files, opened when first read; the last few stay open. One thread at a time: the library takes no more."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: OrderedDict[Path, Any] = OrderedDict()

    @contextmanager
    def use(self, path: Path) -> Iterator[Any]:
        """The open file. Whatever HDF5 raises in the meantime becomes an InputError that names it."""
        import h5py

        with self._lock:
            try:
                file = self._open.pop(path, None) or h5py.File(path, "r")
                self._open[path] = file
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
                yield file
            except InputError:
                raise
            except Exception as error:  # of a damaged file the library raises almost anything
                raise InputError(f"{path} cannot be read as HDF5: {error}", hint="copy the file again") from error

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def _tiles(file: Any, path: Path) -> Any:
    """PatchCamelyon's `x`, `(N, height, width, 3)` uint8."""
    found = _dataset(file, "x", path, axes="tiles, height, width, 3")
    stored = found.id.get_storage_size()
    if found.nbytes > _MOST_PACKED * stored:
        raise InputError(f"{path} says {found.shape[0]:,} tiles and holds {stored:,} bytes", hint="copy the file again")
    return found


def _pcam_labels(file: Any, path: Path, rows: range, count: int) -> list[str | None]:
    stored = _dataset(file, "y", path)
    if stored.shape[:1] != (count,) or stored.size != count:
        raise InputError(f"{path} has {stored.size} labels for {count} tiles")
    if stored.dtype.kind not in "bui":
        raise InputError(f"{path} holds labels as {stored.dtype}, expected 0 (normal) or 1 (tumour)")
    values = stored[rows.start : rows.stop].reshape(-1).tolist()
    unknown = [value for value in values if value not in (0, 1)]
    if unknown:
        raise InputError(f"{path} has a label {unknown[0]!r}, expected 0 (normal) or 1 (tumour)")
    return [_PCAM_LABELS[int(value)] for value in values]


def _dataset(file: Any, key: str, path: Path, *, axes: str | None = None) -> Any:
    """A dataset of which no read can take more memory than a tile may.

    Args:
        file: Where it is.
        key: Its name.
        path: Of the file.
        axes: What its axes must be, the last three those of a tile; anything when None.

    Raises:
        InputError: No such dataset, or one of another form, too large, or with its values elsewhere.
    """
    import h5py

    if key not in file:
        there = list(file)
        raise InputError(f"{path} has no dataset {key!r}, it has {', '.join(map(str, there[:20])) or 'none'}")
    found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{path} holds a group {key!r}, expected a dataset", hint="do not use this file as tiles")
    shape: tuple[int, ...] = found.shape or ()
    wanted = axes.split(", ") if axes else None
    if wanted and (found.dtype != np.uint8 or len(shape) != len(wanted) or shape[-1] != 3):
        raise InputError(f"{path} holds {key!r} as {found.dtype} {shape}, expected uint8 ({axes})")
    if wanted and shape[-3] * shape[-2] > MAX_TILE_PIXELS:
        raise InputError(
            f"{path} holds {key!r} of {shape[-2]} x {shape[-3]} px, expected at most {MAX_TILE_PIXELS:,} pixels",
            hint="cut it into tiles (atlas-embed does)",
        )
    if found.chunks is not None and math.prod(found.chunks) * found.dtype.itemsize > _MOST_CHUNK_BYTES:
        raise InputError(
            f"{path} holds {key!r} in chunks of {found.chunks}, expected at most {_MOST_CHUNK_BYTES:,} bytes",
            hint="store it with a chunk a tile",
        )
    if found.is_virtual or found.external or found.file != file:
        raise InputError(f"{path} keeps {key!r} in another file, expected it in its own", hint="copy it into the file")
    return found


def _pcam_split(path: Path) -> str | None:
    match = _PCAM.fullmatch(path.name)
    return SPLIT_NAMES.get(match["split"], match["split"]) if match else None
