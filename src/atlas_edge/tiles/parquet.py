"""Parquet with PathoROB's columns: image, subset, slide_id, patch_id, biological_class, medical_center."""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.tiles.decode import MAX_TILE_BYTES, decode_tile
from atlas_edge.tiles.folders import SPLIT_NAMES
from atlas_edge.tiles.source import TileRecord, TileSource

if TYPE_CHECKING:
    import pyarrow.parquet

_COLUMNS = {
    "label": ("biological_class", "label"),
    "group": ("slide_id", "group", "patient_id"),
    "split": ("split", "subset"),
    "scanner": ("scanner",),
    "stain": ("stain", "staining"),
    "center": ("medical_center", "center"),
    "position": ("position",),
}
_ROWS = 1024
_IMAGES = 32  # decoded from parquet at a time; a row group may hold a million
_KEPT = 4


class ParquetTiles(TileSource):
    """One `.parquet` file, or a folder of them (also in `ROOT/data/`).

    `image` holds encoded bytes, or a struct with `bytes` as Hugging Face writes it. The split is the `split` or
    `subset` column, else the start of the file's name (`test-00000-of-00002.parquet`).
    """

    kind = "parquet"

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        require_module("pyarrow", extra="tiles")
        self.name = path.resolve().stem if path.is_file() else path.resolve().name
        self.split = split
        self._root = path.parent if path.is_file() else path
        self._paths = [path] if path.is_file() else parquet_paths(path)
        self._cursors = {path: _Cursor(path) for path in self._paths}
        self._splits: frozenset[str] | None = None

    def records(self) -> Iterator[TileRecord]:
        """In the files' order, reading no images."""
        return (record for record in self._all_records() if self.split in (None, record.split))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Decode one tile; see `TileSource.read`. Fast in the records' order, slow backwards."""
        file, group, row = (int(part) for part in record.locator[:3])
        value = self._cursors[self._paths[file]].image(group, row, record.id)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise InputError(f"tile {record.id} holds no image bytes", hint="store the encoded image in the column")
        if len(data) > MAX_TILE_BYTES:
            raise InputError(f"tile {record.id} has {len(data):,} bytes, expected at most {MAX_TILE_BYTES:,}")
        return decode_tile(data, name=record.id)

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The file, and its row group and row."""
        file, group, row = (int(part) for part in record.locator[:3])
        return str(self._paths[file]), f"{group}:{row}"

    def splits(self) -> frozenset[str]:
        """Values of the split column, or splits that the file names begin with."""
        if self._splits is None:
            self._splits = frozenset(record.split for record in self._all_records() if record.split is not None)
        return self._splits

    def fingerprint(self) -> str:
        """SHA-256 over ids, labels and groups."""
        digest = hashlib.sha256()
        for record in self.records():
            digest.update(f"{record.id}\0{record.label}\0{record.group}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        for cursor in self._cursors.values():
            cursor.close()

    def _all_records(self) -> Iterator[TileRecord]:
        for number, path in enumerate(self._paths):
            name = path.relative_to(self._root).with_suffix("").as_posix()
            split = SPLIT_NAMES.get(path.stem.split("-")[0].lower())
            yield from _file_records(path, number, name, split)


def parquet_paths(folder: Path) -> list[Path]:
    """Parquet files of a folder, or of its `data` folder, sorted."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


class _Cursor:
    """Images of one file, read forwards in small slices; the last few slices stay at hand for reordered threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: pyarrow.parquet.ParquetFile | None = None
        self._group = -1
        self._next_row = 0
        self._slices: Iterator[Any] = iter(())
        self._kept: deque[tuple[int, Any]] = deque(maxlen=_KEPT)

    def image(self, group: int, row: int, name: str) -> Any:
        """The image cell of a row of a row group."""
        import pyarrow

        with self._lock:
            try:
                return self._image(group, row)
            except (OSError, pyarrow.ArrowException, StopIteration) as error:
                raise InputError(
                    f"tile {name} cannot be read from {self._path.name}: {error}", hint="copy the file again"
                ) from error

    def close(self) -> None:
        """Forget the open file."""
        with self._lock:
            self._slices = iter(())
            self._kept.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _image(self, group: int, row: int) -> Any:
        first = self._kept[0][0] if self._kept else 0
        if self._file is None or group != self._group or row < first:
            self._rewind(group)
        while row >= self._next_row:
            images = next(self._slices).column(0)
            self._kept.append((self._next_row, images))
            self._next_row += len(images)
        for start, images in self._kept:
            if start <= row < start + len(images):
                return images[row - start].as_py()
        raise StopIteration

    def _rewind(self, group: int) -> None:
        from pyarrow import parquet

        if self._file is None:
            self._file = parquet.ParquetFile(self._path)
        self._group, self._next_row = group, 0
        self._kept.clear()
        self._slices = self._file.iter_batches(
            batch_size=_IMAGES, row_groups=[group], columns=["image"], use_threads=False
        )


def _file_records(path: Path, number: int, name: str, split: str | None) -> Iterator[TileRecord]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if "image" not in there:
                raise InputError(f"{path} has no column 'image', it has {', '.join(there)}")
            columns = {
                field: next((c for c in candidates if c in there), None) for field, candidates in _COLUMNS.items()
            }
            wanted = [column for column in (*columns.values(), "mpp" if "mpp" in there else None) if column]
            count = 0
            for group in range(file.num_row_groups):
                row = 0
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                    values = batch.to_pydict()
                    for offset in range(batch.num_rows):
                        yield _record(values, offset, columns, split, f"{name}:{count}", (number, group, row))
                        row, count = row + 1, count + 1
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="copy the file again") from error


def _record(
    values: dict[str, list[Any]],
    offset: int,
    columns: dict[str, str | None],
    split: str | None,
    tile_id: str,
    locator: tuple[int, int, int],
) -> TileRecord:
    found: dict[str, str | None] = {}
    for field, column in columns.items():
        value = None if column is None else values[column][offset]
        found[field] = None if value is None else str(value)
    said = found.pop("split")
    found["split"] = SPLIT_NAMES.get(said.lower(), said) if said else split
    mpp = values["mpp"][offset] if "mpp" in values else None
    return TileRecord(id=tile_id, mpp=None if mpp is None else float(mpp), locator=locator, **found)
