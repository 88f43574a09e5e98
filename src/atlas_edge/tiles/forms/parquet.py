"""Parquet with PathoROB's columns: image, subset, slide_id, patch_id, biological_class, medical_center."""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.system.paths import printable
from atlas_edge.tiles.decode import MAX_TILE_BYTES, decode_tile
from atlas_edge.tiles.forms.folders import SPLIT_NAMES, checked_mpp
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
    "mpp": ("mpp",),
}
_ROWS = 1024
_LONGEST_TEXT = 4096
# Images last read that stay at hand for threads that come late.
_KEPT = 128
_KEPT_BYTES = 64 * 2**20
# Encoded images do not pack: a column that unpacks to this much, and to so many times its size, holds something else.
_LARGE_BYTES = 256 * 2**20
_MOST_PACKED = 100


class ParquetTiles(TileSource):
    """One `.parquet` file, or a folder of them (also in `ROOT/data/`).

    `image` holds encoded bytes, or a struct with `bytes` as Hugging Face writes it. The split is the `split` or
    `subset` column, else the start of the file's name (`test-00000-of-00002.parquet`).
    """

    kind = "parquet"

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        require_module("pyarrow", extra="tiles")
        self.name = printable(path.resolve().stem if path.is_file() else path.resolve().name)
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
        data = self._cursors[self._paths[file]].image(group, row, record.id)
        if data is None:
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
        """SHA-256 over ids, labels and groups, and the files' sizes."""
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(f"{path.stat().st_size}\n".encode())
        for record in self.records():
            digest.update(f"{record.id}\0{record.label}\0{record.group}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        for cursor in self._cursors.values():
            cursor.close()

    def _all_records(self) -> Iterator[TileRecord]:
        for number, path in enumerate(self._paths):
            name = printable(path.relative_to(self._root).with_suffix("").as_posix())
            split = SPLIT_NAMES.get(path.stem.split("-")[0].lower())
            yield from _file_records(path, number, name, split)


def parquet_paths(folder: Path) -> list[Path]:
    """Parquet files of a folder, or of its `data` folder, sorted."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


class _Cursor:
    """Images of one file, read forwards one by one; the last few stay at hand for reordered threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: pyarrow.parquet.ParquetFile | None = None
        self._group = -1
        self._next_row = 0
        self._images: Iterator[Any] = iter(())
        self._kept: deque[bytes | None] = deque()
        self._kept_bytes = 0

    def image(self, group: int, row: int, name: str) -> bytes | None:
        """The encoded image in a row of a row group; None where the cell is empty."""
        with self._lock, _reading(self._path, f"tile {name} cannot be read from {self._path.name}"):
            return self._image(group, row)

    def close(self) -> None:
        """Forget the open file."""
        with self._lock:
            self._images = iter(())
            self._forget()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _image(self, group: int, row: int) -> bytes | None:
        if self._file is None or group != self._group or row < self._next_row - len(self._kept):
            self._rewind(group)
        while row >= self._next_row:
            cell = next(self._images).column(0)[0].as_py()
            image: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
            self._next_row += 1
            self._kept.append(image)
            self._kept_bytes += len(image or b"")
            while len(self._kept) > _KEPT or (self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1):
                self._kept_bytes -= len(self._kept.popleft() or b"")
        return self._kept[row - self._next_row]

    def _rewind(self, group: int) -> None:
        from pyarrow import parquet

        if self._file is None:
            self._file = parquet.ParquetFile(self._path)
        column = _image_column(self._file, self._path)
        _check_unpacked(self._file, group, {column}, self._path)
        self._group, self._next_row = group, 0
        self._forget()
        # One at a time: 32 cells that unpack to 60 MB each would be too many, and reading is no faster.
        self._images = self._file.iter_batches(batch_size=1, row_groups=[group], columns=[column], use_threads=False)

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0


@contextmanager
def _reading(path: Path, fault: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of a damaged file the library raises almost anything
        reason = "it ends early" if isinstance(error, StopIteration) else " ".join(str(error).split())
        raise InputError(f"{fault}: {reason}", hint=f"copy {path.name} again") from error


def _file_records(path: Path, number: int, name: str, split: str | None) -> Iterator[TileRecord]:
    from pyarrow import parquet

    with _reading(path, f"{path} cannot be read"), parquet.ParquetFile(path) as looked_at:
        _image_column(looked_at, path)
        rows, size_bytes = looked_at.metadata.num_rows, path.stat().st_size
        if rows > size_bytes:
            raise InputError(f"{path} says {rows:,} tiles and has {size_bytes:,} bytes", hint="copy the file again")
        columns, texts = _columns(looked_at, path)
    wanted = [column for column in columns.values() if column]
    # Texts as numbers and a dictionary: a long one that many rows share is read once.
    with _reading(path, f"{path} cannot be read"), parquet.ParquetFile(path, read_dictionary=texts) as file:
        count = 0
        for group in range(file.num_row_groups):
            _check_unpacked(file, group, set(wanted), path)
            row = 0
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                values = _values(batch, path)
                for offset in range(batch.num_rows):
                    yield _record(values, offset, columns, split, f"{name}:{count}", (number, group, row))
                    row, count = row + 1, count + 1


def _image_column(file: "pyarrow.parquet.ParquetFile", path: Path) -> str:
    """The column that holds encoded images: `image`, or `image.bytes`."""
    from pyarrow import types

    schema = file.schema_arrow
    if "image" not in schema.names:
        raise InputError(f"{path} has no column 'image', it has {', '.join(schema.names[:20])}")
    column, kind = "image", schema.field("image").type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = "image.bytes", kind.field("bytes").type
    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if not any(check(kind) for check in checks):
        raise InputError(
            f"{path} has {column!r} of {str(kind)[:80]}, expected bytes", hint="store the encoded image in the column"
        )
    return column


def _columns(file: "pyarrow.parquet.ParquetFile", path: Path) -> tuple[dict[str, str | None], list[str]]:
    """The column of each field of a record, None where there is none, and which of them hold text."""
    from pyarrow import types

    schema = file.schema_arrow
    columns: dict[str, str | None] = {
        field: next((column for column in candidates if column in schema.names), None)
        for field, candidates in _COLUMNS.items()
    }
    texts = []
    for column in filter(None, columns.values()):
        kind = schema.field(column).type
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            texts.append(column)
        elif not (types.is_primitive(kind) or types.is_dictionary(kind) or types.is_null(kind)):
            raise InputError(f"{path} has {column!r} of {str(kind)[:80]}, expected text or numbers")
    return columns, texts


def _check_unpacked(file: "pyarrow.parquet.ParquetFile", group: int, names: set[str], path: Path) -> None:
    """Refuse columns that say they unpack to more than what tile sets hold."""
    found = file.metadata.row_group(group)
    for column in map(found.column, range(found.num_columns)):
        unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
        if column.path_in_schema in names and unpacked > max(_LARGE_BYTES, _MOST_PACKED * packed):
            raise InputError(
                f"{path} has {column.path_in_schema!r} of {packed:,} bytes that unpack to {unpacked:,}",
                hint="do not use this file",
            )


def _values(batch: Any, path: Path) -> dict[str, list[Any]]:
    """A batch as lists, once no text is found to be long."""
    from pyarrow import compute, types

    found = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        packed = types.is_dictionary(column.type)
        values = column.dictionary if packed else column
        if types.is_string(values.type) or types.is_large_string(values.type) or types.is_string_view(values.type):
            longest = compute.max(compute.binary_length(values)).as_py() or 0
            if longest > _LONGEST_TEXT:
                raise InputError(
                    f"{path} has a text of {longest:,} bytes in {name!r}, expected at most {_LONGEST_TEXT:,}"
                )
        found[name] = (column.dictionary_decode() if packed else column).to_pylist()
    return found


def _record(
    values: dict[str, list[Any]],
    offset: int,
    columns: dict[str, str | None],
    split: str | None,
    tile_id: str,
    locator: tuple[int, int, int],
) -> TileRecord:
    found = {field: None if column is None else values[column][offset] for field, column in columns.items()}
    mpp = checked_mpp(found.pop("mpp"), f"tile {tile_id}")
    texts = {field: None if value is None else str(value) for field, value in found.items()}
    said = texts.pop("split")
    texts["split"] = SPLIT_NAMES.get(said.lower(), said) if said else split
    return TileRecord(id=tile_id, mpp=mpp, locator=locator, **texts)
