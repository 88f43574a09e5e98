"""Looking at a drop folder again and again: what is new, what has settled, what has gone."""

import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_edge.embed.slide_files import SlideIdentity, find_slides, slide_identity
from atlas_edge.embed.watch.event_log import EventLog
from atlas_edge.embed.watch.journal import WatchJournal
from atlas_edge.embed.workers import reason_of
from atlas_edge.errors import InputError, RuntimeMissing, UsageError

if TYPE_CHECKING:
    from atlas_edge.embed.config import WatchOptions

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_OVERDUE_S = 60.0


class Troubles:
    """What keeps a watcher from its work for the time being: told once, waited for with a growing pause."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._messages: dict[str, str] = {}
        self._errors: dict[str, BaseException] = {}
        self._since: dict[str, float] = {}
        self._pauses: dict[str, float] = {}

    def met(self, kind: str, message: str, error: BaseException) -> float:
        """Note a trouble; returns how long to wait before the next try, seconds."""
        with self._lock:
            if self._messages.get(kind) != message:
                known = isinstance(error, OSError | InputError | UsageError)
                where = {} if known else {"traceback": "".join(traceback.format_exception(error))}
                self._log.write("trouble", kind=kind, error=message, **where)
            self._messages[kind], self._errors[kind] = message, error
            self._since.setdefault(kind, time.monotonic())
            pause = self._pauses.get(kind, _FIRST_PAUSE_S)
            self._pauses[kind] = min(2 * pause, _LONGEST_PAUSE_S)
            return pause

    def over(self, kind: str) -> None:
        """Note that it is over."""
        with self._lock:
            self._pauses.pop(kind, None)
            if self._messages.pop(kind, None) is not None:
                seconds = round(time.monotonic() - self._since.pop(kind), 1)
                self._log.write("trouble over", kind=kind, seconds=seconds)

    def give_up_after(self, seconds: float) -> None:
        """Raise what has lasted longer.

        Raises:
            InputError: A trouble that has.
            RuntimeMissing: It was one of a device or runtime.
        """
        with self._lock:
            for kind, since in self._since.items():
                if time.monotonic() - since > seconds:
                    failure = RuntimeMissing if isinstance(self._errors[kind], RuntimeMissing) else InputError
                    raise failure(self._messages[kind], hint="mend it and start again: it goes on where it stopped")

    def waits_for(self) -> dict[str, float]:
        """Kinds of what has not ended, and for how long it has lasted, seconds."""
        with self._lock:
            return {kind: round(time.monotonic() - since, 1) for kind, since in self._since.items()}

    def __str__(self) -> str:
        with self._lock:
            return "; ".join(self._messages.values())


class Scanner:
    """Looks at a folder.

    Attributes:
        folder: The folder.
        looked: Set once all of the folder has been seen.
        look_s: How long the latest look took, seconds.
        refusal: Why the watcher must not begin; None where it may.
    """

    def __init__(self, folder: Path, out: Path, options: "WatchOptions", log: EventLog, troubles: Troubles) -> None:
        self.folder = folder
        self.looked = threading.Event()
        self.look_s = 0.0
        self._looked_at = time.monotonic()
        self.refusal: UsageError | None = None
        self._out, self._options, self._log, self._troubles = out, options, log, troubles
        # By a clock that nobody sets.
        self._since: dict[Path, tuple[SlideIdentity, float]] = {}
        self._told: set[tuple[str, Path]] = set()
        self._left_out = 0

    def look(
        self,
        journal: WatchJournal,
        outs: Callable[[Path], Iterator[Path]],
        holds: Callable[[Path, SlideIdentity, Path], bool],
    ) -> None:
        """Look once; what one slide does wrong is that slide's.

        Args:
            journal: Where it is noted.
            outs: Where a slide's embeddings may go.
            holds: Whether an output holds a slide's embeddings already.

        Raises:
            FileNotFoundError: The folder is gone.
            InputError: With `once`, all slides are gone: their share must be.
            sqlite3.Error: The journal cannot be written.
        """
        begun = time.monotonic()
        unread: list[Path] = []

        def failed(error: OSError) -> None:
            unread.append(Path(error.filename or self.folder))
            self._tell("unread", unread[-1], reason_of(error))

        seen: set[Path] = set()
        left_out = 0
        for path in find_slides(self.folder, self._out, self._ignore, failed):
            if not is_wanted(path.relative_to(self.folder), self._options):
                left_out += 1
                continue
            seen.add(path)
            try:
                self._observe(journal, path, outs, holds)
            except FileNotFoundError:
                continue
            except UsageError as error:
                self.refusal = error
                return
            except sqlite3.Error:
                raise
            except Exception as error:
                self._tell("unread", path, reason_of(error))
        for path in journal.forget(seen, unread, all_of_them=left_out > 0 or not self._options.once):
            self._log.write("gone", slide=str(path))
        self._since = {path: since for path, since in self._since.items() if path in seen}
        if left_out != self._left_out:
            # Not each of them: there may be a hundred thousand.
            self._log.write("left out", slides=left_out, folder=str(self.folder))
            self._left_out = left_out
        self._looked_at = time.monotonic()
        self.look_s = self._looked_at - begun
        self.looked.set()

    @property
    def age_s(self) -> float:
        """Seconds since the folder was last looked at; since the start where it never was."""
        return time.monotonic() - self._looked_at

    @property
    def due_s(self) -> float:
        """An age at which the folder should have been looked at long ago."""
        return _OVERDUE_S + 3 * (self._options.poll_s + self.look_s)

    def _observe(
        self,
        journal: WatchJournal,
        path: Path,
        outs: Callable[[Path], Iterator[Path]],
        holds: Callable[[Path, SlideIdentity, Path], bool],
    ) -> None:
        identity = slide_identity(path)
        marked = any(marker.is_file() for marker in (Path(f"{path}.done"), path.with_suffix(".done")))
        ready = marked or (self._has_settled(path, identity) and not self._options.marker_only)
        # What is marked when it is found is queued in the same look: `once` may end after it.
        for _ in range(2 if ready else 1):
            happened = journal.observe(
                path,
                outs(path),
                identity=identity,
                now=time.time(),
                ready=ready,
                embedded=lambda out: self._is_embedded(holds, path, identity, out),
            )
            if happened is not None:
                self._log.write(happened, slide=str(path), size_bytes=identity.size_bytes)

    def _is_embedded(
        self, holds: Callable[[Path, SlideIdentity, Path], bool], path: Path, identity: SlideIdentity, out: Path
    ) -> bool:
        try:
            return holds(path, identity, out)
        except UsageError:
            if not self.looked.is_set():
                raise
            # A watcher that is at work does not end for one output that was put there: that slide will fail.
            return False

    def _has_settled(self, path: Path, identity: SlideIdentity) -> bool:
        looked, since = self._since.get(path, (None, 0.0))
        if looked != identity:
            since = time.monotonic()
            self._since[path] = (identity, since)
        return time.monotonic() - since >= self._options.settle_s

    def _ignore(self, path: Path) -> None:
        self._tell("ignored", path, "a folder, expected a slide file")

    def _tell(self, event: str, path: Path, reason: str) -> None:
        if (event, path) not in self._told:
            self._told.add((event, path))
            self._log.write(event, slide=str(path), reason=reason)


def is_wanted(below: Path, options: "WatchOptions") -> bool:
    """Whether a slide, by its path below the drop folder, is one to embed."""

    def fits(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(text, pattern) for pattern in patterns for text in (below.name, below.as_posix()))

    return (not options.include or fits(options.include)) and not fits(options.exclude)


def apart(folders: Sequence[Path]) -> list[Path]:
    """Whole paths of drop folders.

    Raises:
        UsageError: One is no folder, or lies in another; or there is none.
    """
    if not folders:
        raise UsageError("no drop folder is named", hint="name one")
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder, expected the scanner's drop folder")
        path = folder.resolve()
        for other in found:
            if path == other or path in other.parents or other in path.parents:
                raise UsageError(f"{path} and {other} hold the same slides", hint="give the one above only")
        found.append(path)
    return found
