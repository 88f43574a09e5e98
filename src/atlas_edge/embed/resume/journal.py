"""Embeddings of a slide under way, kept so that a killed run goes on where it was."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.system.atomic import write_atomic

Shape = tuple[int, ...]

_FEATURES = "features"
_LOGGER = logging.getLogger("atlas_edge")


class Journal:
    """Rows in raw files beside the output, and how many of them are safely on disk.

    Args:
        out: File beside which the journal is, the folder `.NAME.work`: the final output, or one of its name elsewhere.
        plan: What the rows depend on: a journal of another plan is dropped.
        embed_dim: Values of an embedding.
        besides: What else is kept of a tile, each with numpy's name of its type and its shape.

    Attributes:
        rows: Tiles so far.
        unreadable: Index of a tile that could not be read -> reason.
        begun: When the first run of this plan began, UTC.
    """

    def __init__(
        self, out: Path, plan: dict[str, Any], embed_dim: int, besides: Mapping[str, tuple[str, Shape]] | None = None
    ) -> None:
        self.folder = out.parent / f".{out.name}.work"
        self.rows = 0
        self.unreadable: dict[int, str] = {}
        self.begun = datetime.now(UTC).isoformat(timespec="seconds")
        self._progress = self.folder / "progress.json"
        kept = {_FEATURES: ("<f4", (embed_dim,)), **(besides or {})}
        self._files = {name: _RowFile(self.folder, name, *form) for name, form in kept.items()}
        self._plan = plan
        if not self._resume():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        for file in self._files.values():
            file.open(self.rows)
        self.checkpoint()

    @property
    def row_bytes(self) -> int:
        """Of all that is kept of a tile."""
        return sum(file.row_bytes for file in self._files.values())

    def shape_of(self, name: str) -> Shape | None:
        """Of what is kept of a tile under a name; None where nothing is."""
        return self._files[name].shape if name in self._files else None

    def append(self, features: NDArray[np.float32], unreadable: dict[int, str], **besides: NDArray[Any]) -> None:
        """Add rows; `unreadable` counts from the slide's first tile."""
        for name, values in self._all(features, besides).items():
            self._files[name].append(values)
        self.rows += len(features)
        self.unreadable.update(unreadable)

    def replace(self, indices: Sequence[int], features: NDArray[np.float32], **besides: NDArray[Any]) -> None:
        """Put the rows of tiles that could be read after all where those of white tiles are."""
        for name, values in self._all(features, besides).items():
            self._files[name].replace(indices, values)
        for index in indices:
            del self.unreadable[index]

    def checkpoint(self) -> None:
        """Make what was appended survive a kill or a power cut."""
        for file in self._files.values():
            file.sync()
        state = {"plan": self._plan, "rows": self.rows, "unreadable": self.unreadable, "begun": self.begun}
        write_atomic(self._progress, json.dumps(state).encode())

    def read(self, start: int, stop: int, name: str = _FEATURES) -> NDArray[Any]:
        """Embeddings that were checkpointed, `(stop - start, D)` float32, or what else is kept under a name."""
        return self._files[name].read(start, stop)

    def close(self) -> None:
        """Close the files; what is on disk stays for the next run."""
        with ExitStack() as stack:
            # All of them, also where a full disk refuses what the first one held back.
            for file in self._files.values():
                stack.callback(file.close)

    def remove(self) -> None:
        """Forget everything, once the output is whole."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self, features: NDArray[np.float32], besides: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = {_FEATURES: features, **besides}
        assert found.keys() == self._files.keys()
        return found

    def _resume(self) -> bool:
        try:
            state = json.loads(self._progress.read_bytes())
            rows, begun = int(state["rows"]), str(state["begun"])
            whole = all(file.holds(rows) for file in self._files.values())
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if state["plan"] != self._plan or not whole:
            _LOGGER.warning("%s: begun anew, an earlier run of other options had %d tiles", self.folder.name, rows)
            return False
        self.rows, self.begun = rows, begun
        self.unreadable = {int(index): str(reason) for index, reason in state["unreadable"].items()}
        return True


class _RowFile:
    """Rows of one shape in a raw file."""

    def __init__(self, folder: Path, name: str, dtype: str, shape: Shape) -> None:
        self.shape, self._dtype = shape, np.dtype(dtype)
        self._path = folder / f"{name}.f{8 * self._dtype.itemsize}"
        self.row_bytes = self._dtype.itemsize * math.prod(shape)

    def holds(self, rows: int) -> bool:
        return self._path.stat().st_size >= rows * self.row_bytes

    def open(self, rows: int) -> None:
        """Open for writing behind so many rows; what lies there goes."""
        self._path.touch()
        self._file = self._path.open("r+b")
        self._file.truncate(rows * self.row_bytes)
        self._file.seek(0, os.SEEK_END)

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())

    def replace(self, indices: Sequence[int], rows: NDArray[Any]) -> None:
        for index, values in zip(indices, np.ascontiguousarray(rows, dtype=self._dtype), strict=True):
            self._file.seek(index * self.row_bytes)
            self._file.write(values.tobytes())
        self._file.seek(0, os.SEEK_END)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        count = (stop - start) * math.prod(self.shape)
        values = np.fromfile(self._path, dtype=self._dtype, count=count, offset=start * self.row_bytes)
        return values.reshape(-1, *self.shape)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
