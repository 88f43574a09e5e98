"""A pack: `manifest.csv` beside zip shards, each tile with its SHA-256."""

import csv
import hashlib
import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import ChecksumError, InputError
from atlas_edge.system.paths import printable
from atlas_edge.tiles.decode import MAX_TILE_BYTES, decode_tile
from atlas_edge.tiles.forms.folders import SPLIT_NAMES, checked_mpp, checked_name, read_inside
from atlas_edge.tiles.source import TileRecord, TileSource

MANIFEST_CSV = "manifest.csv"
REQUIRED_COLUMNS = ("file", "shard")

_OPEN_SHARDS = 4  # each holds its directory in memory: some 100 MB for 200,000 tiles
_FAULTS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class Pack(TileSource):
    """`ROOT/manifest.csv` and the shards that it names.

    Columns: `file` (name in the shard) and `shard` (empty: the file lies beside the manifest); read where present:
    `label`, `split`, `group`, `scanner`, `stain`, `center`, `position`, `mpp`, `sha256` (checked when a tile is read).
    """

    kind = "pack"

    def __init__(self, root: Path, *, split: str | None = None) -> None:
        self.root = root
        self.name = printable(root.resolve().name)
        self.split = split
        self._shards = _Shards(root)
        self._splits: frozenset[str] | None = None

    def records(self) -> Iterator[TileRecord]:
        """In the manifest's order.

        Raises:
            InputError: The manifest is missing, misses a column, or has a row that does not fit.
        """
        return (record for record in self._all_records() if self.split in (None, record.split))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """Read, check against the manifest's SHA-256 and decode; see `TileSource.read`.

        Raises:
            ChecksumError: The tile differs from the manifest.
        """
        shard, name, sha256 = (str(part) for part in record.locator)
        data = self._shards.read(shard, name) if shard else read_inside(self.root, name)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise ChecksumError(
                f"tile {name} of {shard or self.name} differs from the manifest's SHA-256",
                hint="copy the pack again",
            )
        return decode_tile(data, name=record.id)

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The shard and the name in it."""
        shard, name, _ = (str(part) for part in record.locator)
        return (f"{self.root}/{shard}", name) if shard else (f"{self.root}/{name}", "")

    def splits(self) -> frozenset[str]:
        """Values of the `split` column."""
        if self._splits is None:
            self._splits = frozenset(record.split for record in self._all_records() if record.split is not None)
        return self._splits

    def fingerprint(self) -> str:
        """SHA-256 over ids and stored hashes; where those are missing, over the sizes of shards and files."""
        digest = hashlib.sha256()
        last = ""
        for record in self.records():
            digest.update(f"{record.id}\0{record.locator[2]}\n".encode())
            file = self.place(record)[0]
            if not record.locator[2] and file != last:
                digest.update(f"{_size_bytes(file)}\n".encode())
                last = file
        return digest.hexdigest()

    def close(self) -> None:
        """Close the shards."""
        self._shards.close()

    def _all_records(self) -> Iterator[TileRecord]:
        path = self.root / MANIFEST_CSV
        line = 0
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, strict=True)
                missing = [column for column in REQUIRED_COLUMNS if column not in (rows.fieldnames or ())]
                if missing:
                    raise InputError(
                        f"{path} has no column {missing[0]!r}", hint=f"expected {', '.join(REQUIRED_COLUMNS)}"
                    )
                for row in rows:
                    line = rows.line_num
                    yield _record(row, f"{path} line {line}")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"{path} cannot be read after line {line}: {reason}", hint="copy the pack again"
            ) from error


class _Shards:
    """Zip files, opened when first read; the last few stay open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, zipfile.ZipFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, name: str) -> bytes:
        checked_name(shard)
        try:
            with self._member(shard, name) as member:
                return member.read()
        except KeyError as error:
            raise InputError(f"tile {name} is not in {shard}", hint="copy the pack again") from error
        except _FAULTS as error:
            raise InputError(f"tile {name} of {shard} cannot be read: {error}", hint="copy the pack again") from error

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _member(self, shard: str, name: str) -> IO[bytes]:
        # Opened under the lock, so that a shard is never closed between its look-up and its use.
        with self._lock:
            archive = self._open.pop(shard, None) or zipfile.ZipFile(self._root / shard)
            self._open[shard] = archive
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            info = archive.getinfo(name)
            if info.file_size > MAX_TILE_BYTES:
                raise InputError(f"tile {name} of {shard} unpacks to {info.file_size:,} bytes, a tile has fewer")
            return archive.open(info)


def _size_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - one a tile, where tiles are files
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", hint="copy the pack again") from error


def _record(row: dict[str, str | None], where: str) -> TileRecord:
    # DictReader puts surplus fields under None and leaves missing ones None.
    if None in row or None in row.values():
        raise InputError(f"{where} has not as many fields as the header", hint="copy the pack again")
    given = {column: value for column, value in row.items() if value}
    name, shard = given.get("file", ""), given.get("shard", "")
    checked_name(name)
    split = given.get("split")
    return TileRecord(
        # Two shards may both hold a 0001.png.
        id=f"{shard}/{name}" if shard else name,
        label=given.get("label"),
        group=given.get("group"),
        split=SPLIT_NAMES.get(split.lower(), split) if split else None,
        scanner=given.get("scanner"),
        stain=given.get("stain"),
        center=given.get("center"),
        position=given.get("position"),
        mpp=checked_mpp(given.get("mpp"), where),
        locator=(shard, name, given.get("sha256", "").lower()),
    )
