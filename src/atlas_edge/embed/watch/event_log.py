"""What a watcher did, as JSON lines that outlive it."""

import json
import os
import threading
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlas_edge.embed.output.lock import output_lock
from atlas_edge.errors import AtlasError

LOG = "atlas-embed.jsonl"

_KEPT = 1000
_READ_BYTES = 2**22
_SHOWN = 100


class EventLog:
    """JSON lines, one an event, appended to a file; one that is full is kept as NAME.1, the one before as NAME.2.

    A full disk or a share that is gone stops nobody: the latest lines stay in memory until they can be written.

    Args:
        path: File.
        most_bytes: Its size at which a new one is begun.
        files: Full ones that are kept.
    """

    def __init__(self, path: Path, *, most_bytes: float = float("inf"), files: int = 5) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._full = [path.with_name(f"{path.name}.{number + 1}") for number in range(files)]
        self._lock = threading.Lock()
        self._unwritten: deque[str] = deque(maxlen=_KEPT)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event with the time."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields})
        with self._lock:
            self._unwritten.append(line + "\n")
            try:
                if self._is_full():
                    self._begin_anew()
                with self._path.open("ab", buffering=0) as file:
                    self._append(file)
            except OSError:
                return

    def of_slide(self, slide: str) -> list[dict[str, Any]]:
        """The latest events of a slide, oldest first, as far as the latest lines of the log reach back."""
        wanted = f'"slide": {json.dumps(slide)}'.encode()
        lines: list[bytes] = []
        left = _READ_BYTES
        for path in (self._path, *self._full):
            if left <= 0:
                break
            with suppress(OSError), path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - left, 0))
                data = file.read(left)
                left -= len(data)
                lines = [line for line in data.splitlines() if wanted in line] + lines
        return list(filter(None, map(_parsed, lines[-_SHOWN:])))

    def _is_full(self) -> bool:
        try:
            return self._path.stat().st_size >= self._most_bytes
        except FileNotFoundError:
            return False

    def _begin_anew(self) -> None:
        # Where another watcher does so now, or has a file open on Windows, the next line finds it done or does it.
        with suppress(AtlasError, OSError), output_lock(self._path):
            if not self._is_full():
                return
            if not self._full:
                self._path.unlink()
                return
            aside = self._path.with_name(f"{self._path.name}.0")
            self._path.replace(aside)
            for older, newer in zip(self._full[::-1], [*self._full[-2::-1], aside], strict=True):
                if newer.exists():
                    newer.replace(older)

    def _append(self, file: Any) -> None:
        while self._unwritten:
            line = self._unwritten[0].encode()
            # One write a line: those of two watchers do not mix.
            if (written := file.write(line)) < len(line):
                # The disk is full: half a line would spoil the next one.
                file.truncate(file.tell() - written)
                return
            self._unwritten.popleft()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # the first line that was read may lack its beginning
        return None
    return found if isinstance(found, dict) else None
