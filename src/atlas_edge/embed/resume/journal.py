"""Embeddings of a slide under way, kept so that a killed run goes on where it was."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.system.atomic import write_atomic

_LOGGER = logging.getLogger("atlas_edge")


class Journal:
    """Rows in a raw file beside the output, and how many of them are safely on disk.

    Args:
        out: Final output file; the journal is the folder `.NAME.work` beside it.
        plan: What the rows depend on: a journal of another plan is dropped.
        embed_dim: Values of an embedding.
        measures: Further values a row, which follow it.

    Attributes:
        rows: Tiles so far.
        unreadable: Index of a tile that could not be read -> reason.
        begun: When the first run of this plan began, UTC.
    """

    def __init__(self, out: Path, plan: dict[str, Any], embed_dim: int, measures: int = 0) -> None:
        self.folder = out.parent / f".{out.name}.work"
        self.rows = 0
        self.unreadable: dict[int, str] = {}
        self.begun = datetime.now(UTC).isoformat(timespec="seconds")
        self._embed_dim, self._width = embed_dim, embed_dim + measures
        self._row_bytes = 4 * self._width
        self._progress = self.folder / "progress.json"
        self._features = self.folder / "features.f32"
        self._plan = plan
        if not self._resume():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._features.touch()
        self._file = self._features.open("r+b")
        self._file.truncate(self.rows * self._row_bytes)
        self._file.seek(0, os.SEEK_END)
        self.checkpoint()

    def append(self, rows: NDArray[np.float32], unreadable: dict[int, str]) -> None:
        """Add rows, each an embedding and what was measured; `unreadable` counts from the slide's first tile."""
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.rows += len(rows)
        self.unreadable.update(unreadable)

    def replace(self, rows: Sequence[int], found: NDArray[np.float32]) -> None:
        """Put the rows of tiles that could be read after all where those of white tiles are."""
        for row, values in zip(rows, np.ascontiguousarray(found, dtype="<f4"), strict=True):
            self._file.seek(row * self._row_bytes)
            self._file.write(values.tobytes())
            del self.unreadable[row]
        self._file.seek(0, os.SEEK_END)

    def checkpoint(self) -> None:
        """Make what was appended survive a kill or a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())
        state = {"plan": self._plan, "rows": self.rows, "unreadable": self.unreadable, "begun": self.begun}
        write_atomic(self._progress, json.dumps(state).encode())

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Embeddings that were checkpointed, `(stop - start, D)` float32."""
        return self._read(start, stop)[:, : self._embed_dim]

    def read_measures(self, start: int, stop: int) -> NDArray[np.float32]:
        """What was measured of the same tiles, `(stop - start, measures)` float32."""
        return self._read(start, stop)[:, self._embed_dim :]

    def close(self) -> None:
        """Close the file; what is on disk stays for the next run."""
        self._file.close()

    def remove(self) -> None:
        """Forget everything, once the output is whole."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        count = (stop - start) * self._width
        values = np.fromfile(self._features, dtype="<f4", count=count, offset=start * self._row_bytes)
        return values.reshape(-1, self._width)

    def _resume(self) -> bool:
        try:
            state = json.loads(self._progress.read_bytes())
            rows, begun = int(state["rows"]), str(state["begun"])
            whole = self._features.stat().st_size >= rows * self._row_bytes
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if state["plan"] != self._plan or not whole:
            _LOGGER.warning("%s: begun anew, an earlier run of other options had %d tiles", self.folder.name, rows)
            return False
        self.rows, self.begun = rows, begun
        self.unreadable = {int(index): str(reason) for index, reason in state["unreadable"].items()}
        return True
