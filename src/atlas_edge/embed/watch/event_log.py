"""What a watcher did, as JSON lines that outlive it."""

import json
import os
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG = "atlas-embed.jsonl"

_KEPT = 1000
_READ_BYTES = 2**22
_SHOWN = 100


class EventLog:
    """JSON lines, one an event, appended to a file.

    A full disk or a share that is gone stops nobody: the latest lines stay in memory until they can be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._unwritten: deque[str] = deque(maxlen=_KEPT)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event with the time."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields})
        with self._lock:
            self._unwritten.append(line + "\n")
            try:
                with self._path.open("ab", buffering=0) as file:
                    self._append(file)
            except OSError:
                return

    def of_slide(self, slide: str) -> list[dict[str, Any]]:
        """The latest events of a slide, oldest first, as far as the log reaches back."""
        wanted = f'"slide": {json.dumps(slide)}'.encode()
        try:
            with self._path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _READ_BYTES, 0))
                lines = [line for line in file.read(_READ_BYTES).splitlines() if wanted in line]
        except OSError:
            return []
        return list(filter(None, map(_parsed, lines[-_SHOWN:])))

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
