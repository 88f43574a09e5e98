"""A scanner's drop folder: every finished slide is embedded, once."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlas_edge.atomic import write_atomic
from atlas_edge.embed.output import DiskFull
from atlas_edge.embed.slide import EmbedConfig, embed_slide
from atlas_edge.embed.watch_journal import Job, State, WatchJournal
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError, UsageError

JOURNAL = "atlas-embed.sqlite"
LOG = "atlas-embed.jsonl"
QUARANTINE = "quarantine"
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".tif", ".tiff", ".vms", ".vmu", ".svslide", ".czi")
"""Forms of one file a slide; DICOM, which is a folder of them, is not watched."""

_PROGRESS_S = 1.0
_IDLE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """How a folder is watched.

    Attributes:
        settle_s: A file is finished once its size and time have not changed for so long.
        marker_only: A file is finished only when NAME.done lies beside it.
        poll_s: Pause between two looks at the folder.
        most_attempts: After so many failures a slide is quarantined.
        retry_s: Pause before the second attempt; it doubles.
        form: Form of the outputs: `h5`, `zarr`, `parquet`.
        once: End when everything is embedded or quarantined.
    """

    settle_s: float = 30.0
    marker_only: bool = False
    poll_s: float = 5.0
    most_attempts: int = 3
    retry_s: float = 60.0
    form: str = "h5"
    once: bool = False


class EventLog:
    """JSON lines, one an event, appended to a file; the latest stay in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Append an event with the time."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            # One write: lines of two watchers do not mix.
            file.write(line + "\n")


class Watcher:
    """Embeds what appears in a folder.

    Args:
        folder: Drop folder; looked at with its subfolders, never written to.
        out: Folder for embeddings, journal, log and quarantine reports.
        encoder: What embeds.
        config: See `EmbedConfig`.
        options: See `WatchOptions`.
        bundle_sha256: For the attributes.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        encoder: Encoder,
        config: EmbedConfig,
        options: WatchOptions,
        *,
        bundle_sha256: str = "",
    ) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder, expected the scanner's drop folder")
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.log = EventLog(out / LOG)
        self._folder = folder.resolve()
        self._encoder, self._config, self._options, self._sha256 = encoder, config, options, bundle_sha256
        self._stop = threading.Event()
        self._scanned = threading.Event()
        self._scanner_error: OSError | None = None
        self._told: set[Path] = set()

    def run(self) -> None:
        """Watch until `stop`, or, with `once`, until nothing is left.

        Raises:
            InputError: The folder cannot be read any more.
        """
        journal = WatchJournal(self.out / JOURNAL)
        scanner = threading.Thread(target=self._scan_on, name="scan", daemon=True)
        self.log.write("start", folder=str(self._folder), out=str(self.out), encoder=self._encoder.spec.name)
        try:
            scanner.start()
            while not self._stop.is_set():
                self._reclaim(journal)
                job = journal.claim(time.time())
                if job is not None:
                    self._embed(journal, job)
                elif self._scanner_error is not None:
                    error = self._scanner_error
                    raise InputError(f"{self._folder} cannot be read: {error.strerror or error}", hint="mount it again")
                elif self._options.once and self._scanned.is_set() and journal.unfinished() == 0:
                    return
                else:
                    self._stop.wait(_IDLE_S)
        finally:
            self._stop.set()
            scanner.join()
            self.log.write("stop")
            journal.close()

    def stop(self) -> None:
        """End after the slide that is being embedded."""
        self._stop.set()

    def _scan_on(self) -> None:
        journal = WatchJournal(self.out / JOURNAL)
        try:
            while not self._stop.is_set():
                self._scan(journal)
                self._scanned.set()
                self._stop.wait(self._options.poll_s)
        except OSError as error:
            self._scanner_error = error
        finally:
            journal.close()

    def _scan(self, journal: WatchJournal) -> None:
        for path in find_slides(self._folder, self.out.resolve(), self._tell):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            marked = any(marker.is_file() for marker in (Path(f"{path}.done"), path.with_suffix(".done")))
            happened = journal.observe(
                path,
                self._outs(path),
                size_bytes=status.st_size,
                mtime_ns=status.st_mtime_ns,
                now=time.time(),
                settle_s=float("inf") if self._options.marker_only else self._options.settle_s,
                marked=marked,
            )
            if happened is not None:
                self.log.write(happened, slide=str(path), size_bytes=status.st_size)

    def _tell(self, path: Path) -> None:
        if path not in self._told:
            self._told.add(path)
            self.log.write("ignored", slide=str(path), reason="a folder, expected a slide file")

    def _outs(self, path: Path) -> list[Path]:
        # Two slides may share a name without its suffix, two folders a slide's name.
        folder = self.out / path.relative_to(self._folder).parent
        return [folder / f"{path.stem}.{self._options.form}", folder / f"{path.name}.{self._options.form}"]

    def _reclaim(self, journal: WatchJournal) -> None:
        for path, state in journal.reclaim(most_attempts=self._options.most_attempts):
            self.log.write("reclaimed", slide=str(path), state=state)
            if state is State.QUARANTINED:
                self._report(path, "the process that embedded it ended each time", self._options.most_attempts)

    def _embed(self, journal: WatchJournal, job: Job) -> None:
        self.log.write("begin", slide=str(job.path), attempt=job.attempts)
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= _PROGRESS_S or done == total:
                journal.progress(job, done, total)
                told = time.monotonic()

        try:
            result = embed_slide(
                job.path, self._encoder, job.out, self._config, bundle_sha256=self._sha256, progress=progress
            )
        except DiskFull as error:
            # Not the slide's fault: it waits, and no attempt is counted.
            journal.give_back(job, error.message, next_try_at=time.time() + self._options.retry_s)
            self.log.write("disk full", slide=str(job.path), error=error.message)
        except (InputError, UsageError, OSError) as error:
            self._fail(journal, job, str(error))
        except BaseException:
            journal.give_back(job)
            self.log.write("interrupted", slide=str(job.path))
            raise
        else:
            journal.finish(job, tiles=result.tiles, now=time.time())
            self.log.write(
                "done",
                slide=str(job.path),
                out=str(job.out),
                tiles=result.tiles,
                resumed_tiles=result.resumed_tiles,
                seconds=round(result.seconds, 3),
                unreadable=result.unreadable,
            )

    def _fail(self, journal: WatchJournal, job: Job, error: str) -> None:
        options = self._options
        state = journal.fail(job, error, now=time.time(), most_attempts=options.most_attempts, retry_s=options.retry_s)
        self.log.write("failed", slide=str(job.path), attempt=job.attempts, state=state, error=error)
        if state is State.QUARANTINED:
            self._report(job.path, error, job.attempts)

    def _report(self, path: Path, error: str, attempts: int) -> None:
        """Say in a file of its own why a slide is set aside; the slide stays where the scanner put it."""
        report = self.out / QUARANTINE / f"{'_'.join(path.relative_to(self._folder).parts)}.json"
        report.parent.mkdir(exist_ok=True)
        said = {"slide": str(path), "error": error, "attempts": attempts, "again": "replace or touch the slide"}
        write_atomic(report, (json.dumps(said, indent=2) + "\n").encode())


def find_slides(folder: Path, out: Path, on_folder: Callable[[Path], None] = lambda _: None) -> Iterator[Path]:
    """Slides in a folder and its subfolders, sorted; hidden ones and what lies in `out` are left out.

    Args:
        folder: Where to look.
        out: Where embeddings go, which may be below `folder`.
        on_folder: Called with folders that are named like slides.

    Raises:
        FileNotFoundError: `folder` is gone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, "it is not there", str(folder))
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() not in SLIDE_SUFFIXES or hidden or out in path.parents:
            continue
        if path.is_file():
            yield path
        else:
            on_folder(path)
