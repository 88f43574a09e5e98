"""What a search has measured so far, on disk, so that a killed search goes on where it was."""

import hashlib
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

from atlas_edge.system.atomic import write_atomic


class Journal:
    """A work folder beside the output, with one JSON line for each result.

    Args:
        out: Final output folder; the journal is the folder `.NAME.work` beside it.
        context: What every result depends on. A journal of another context is dropped.
    """

    def __init__(self, out: Path, context: dict[str, Any]) -> None:
        self.folder = out.parent / f".{out.name}.work"
        self._lines = self.folder / "journal.jsonl"
        self._found: dict[str, Any] = {}
        head = self.folder / "context.json"
        wanted = json.dumps(context, sort_keys=True, default=str)
        if not (head.is_file() and head.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_atomic(head, wanted.encode())
        self._read()
        self.resumed = len(self._found)

    def get(self, key: str) -> Any:
        """A result of this or an earlier run, or None."""
        return self._found.get(key)

    def put(self, key: str, result: Any) -> None:
        """Keep a result; it is on disk when this returns."""
        self._found[key] = result
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget everything, once the output is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> None:
        if not self._lines.is_file():
            return
        data = self._lines.read_bytes()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].splitlines():
            entry = json.loads(line)
            self._found[entry["key"]] = entry["result"]
        if whole < len(data):  # a kill cut the last line off
            os.truncate(self._lines, whole)


def code_fingerprint(backend: object) -> str:
    """SHA-256 over the sources of this package and a backend: what older ones measured says nothing of these."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parents[1].rglob("*.py")), Path(inspect.getfile(type(backend)))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(value: Any) -> str:
    """A short name for a JSON value, the same in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
