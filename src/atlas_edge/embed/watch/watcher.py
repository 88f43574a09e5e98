"""A scanner's drop folder: every finished slide is embedded, once."""

import os
import shutil
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from atlas_edge.embed.config import EmbedConfig, WatchOptions
from atlas_edge.embed.jobs import not_its_output, output_names
from atlas_edge.embed.output.files import DiskFull
from atlas_edge.embed.output.lock import OutputBusy
from atlas_edge.embed.resume.plan import attributes_of, differences, is_current, is_of_slide, other_plan, plan_of
from atlas_edge.embed.slide import SlideResult, embed_slide
from atlas_edge.embed.slide_files import SlideIdentity, slide_identity
from atlas_edge.embed.watch.encoder import WatchedEncoder
from atlas_edge.embed.watch.event_log import LOG, EventLog
from atlas_edge.embed.watch.journal import Job, WatchJournal, pause_s
from atlas_edge.embed.watch.on_quarantine import OnQuarantine
from atlas_edge.embed.watch.quarantine import remove_report, report_of, write_report
from atlas_edge.embed.watch.scan import Scanner, Troubles, apart
from atlas_edge.embed.watch.schema import JOURNAL, State
from atlas_edge.embed.watch.view import View, about
from atlas_edge.embed.workers import failure_of, reason_of
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError, InputError, NoTissue, RuntimeMissing, UsageError

_PROGRESS_S = 1.0
_IDLE_S = 0.2
_BEAT_S = 5.0
_JOIN_S = 10.0
_GIVE_UP_S = 60.0
"""With `once`, so long without journal, folder or room on the disk, and there is no point in waiting on."""


class Watcher:
    """Embeds what appears in folders, what came first first.

    Args:
        folders: Drop folders; looked at with their subfolders, never written to.
        out: Folder for embeddings.
        encoder: What embeds.
        config: See `EmbedConfig`.
        options: See `WatchOptions`.
        bundle: What it is called, for the page.
        bundle_sha256: For the attributes.
        state: Folder for journal, log, quarantine reports and unfinished slides; `out` when None.

    Attributes:
        out: See above.
        log: What happens.
        view: For the table and the page.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        out: Path,
        encoder: Encoder,
        config: EmbedConfig,
        options: WatchOptions,
        *,
        bundle: str = "",
        bundle_sha256: str = "",
        state: Path | None = None,
    ) -> None:
        self._folders = apart(folders)
        self.out, self._state = out, state or out
        for place in (out, self._state):
            place.mkdir(parents=True, exist_ok=True)
        self.log = EventLog(self._state / LOG, most_bytes=options.log_mb * 1e6, files=options.log_files)
        self._encoder = WatchedEncoder(encoder, config.batch)
        self._config, self._options, self._sha256 = config, options, bundle_sha256
        self._plan = plan_of(encoder.spec, config, bundle_sha256)
        self._stop = threading.Event()
        self._troubles = Troubles(self.log)
        self._on_quarantine = OnQuarantine(options.on_quarantine, self.log)
        self._scanners = [Scanner(folder, out.resolve(), options, self.log, self._troubles) for folder in self._folders]
        self._pace = self._encoder.pace
        self.view = View(
            journal=self._state / JOURNAL,
            out=out,
            about=about(self._folders, out.resolve(), bundle, encoder.runtime, self._plan),
            log=self.log,
            scanners=self._scanners,
            troubles=self._troubles,
            pace=self._pace,
        )

    def run(self) -> None:
        """Watch until `stop`, or, with `once`, until nothing is left.

        Raises:
            InputError: The journal cannot be written; with `once` also where the folder is gone or the disk full.
            RuntimeMissing: With `once`, the encoder fails whatever it is given.
            UsageError: `out` holds embeddings of another plan.
        """
        with closing(self._open()) as journal:
            with self._explained():
                self._check_plan(journal)
            threads = [
                *(
                    threading.Thread(target=self._scan_on, args=(scanner, journal.owner), name="scan", daemon=True)
                    for scanner in self._scanners
                ),
                threading.Thread(target=self._beat_on, args=(journal.owner,), name="beat", daemon=True),
            ]
            self.log.write(
                "start", folder=", ".join(map(str, self._folders)), out=str(self.out), encoder=self._encoder.spec.name
            )
            ended = False
            try:
                for thread in threads:
                    thread.start()
                while not self._stop.is_set() and not self._is_over(journal):
                    job = self._next(journal) if self._have_looked() else None
                    if job is None:
                        self._stop.wait(_IDLE_S)
                    else:
                        self._embed(journal, job)
                ended = True
            finally:
                self._stop.set()
                for thread in threads:
                    # A share that hangs must not keep the watcher from its end.
                    thread.join(timeout=_JOIN_S)
                self._on_quarantine.close(at_once=not ended)
                self.log.write("stop")

    def stop(self) -> None:
        """End after the slide that is being embedded."""
        self._stop.set()

    def _open(self, *folders: Path, owner: str | None = None) -> WatchJournal:
        with self._explained():
            return WatchJournal(self._state / JOURNAL, *(folders or self._folders), owner=owner)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"{self._state / JOURNAL} cannot be written: {error}",
                hint="make room there, or choose another --out or --state",
            ) from error

    def _check_plan(self, journal: WatchJournal) -> None:
        told = "another watcher may be at work by another plan: waiting for a sign of life of it, for a minute"
        different = journal.adopt(
            self._plan, replace=self._options.re_embed, on_wait=lambda: self.log.write("waiting", reason=told)
        )
        if different:
            raise other_plan(self.out, different)
        for out in journal.unplanned():
            # Written before journals held a plan.
            different = differences(attributes_of(out) or {}, self._plan)
            if different and not self._options.re_embed:
                raise other_plan(out, different)
            if different:
                journal.queue_again(out)

    def _scan_on(self, scanner: Scanner, owner: str) -> None:
        # One that can be looked at ends no trouble of another.
        kind = f"folder {scanner.folder}" if len(self._scanners) > 1 else "folder"
        while not self._stop.is_set():
            try:
                with closing(self._open(scanner.folder, owner=owner)) as journal:
                    while not self._stop.is_set():
                        scanner.look(journal, self._outs, self._holds)
                        self._troubles.over(kind)
                        self._stop.wait(self._options.poll_s)
            except Exception as error:
                # Whatever it was, a watcher that is alive looks: the journal may have been locked, the share gone.
                pause = self._troubles.met(kind, f"{scanner.folder} cannot be looked at: {reason_of(error)}", error)
                self._stop.wait(max(pause, min(self._options.poll_s, 1.0)))

    def _beat_on(self, owner: str) -> None:
        while not self._stop.wait(_BEAT_S):
            # Nobody on this machine asks for it.
            with suppress(sqlite3.Error, InputError), closing(self._open(owner=owner)) as journal:
                journal.beat()

    def _is_over(self, journal: WatchJournal) -> bool:
        self._pace.sign()
        for scanner in self._scanners:
            if scanner.refusal is not None:
                raise scanner.refusal
        if not self._options.once:
            return False
        self._troubles.give_up_after(_GIVE_UP_S)
        # A slide whose marker never comes would be waited for for ever.
        waiting = not self._options.marker_only
        try:
            return self._have_looked() and journal.unfinished(waiting=waiting) == 0
        except sqlite3.Error:
            return False

    def _have_looked(self) -> bool:
        return all(scanner.looked.is_set() for scanner in self._scanners)

    def _next(self, journal: WatchJournal) -> Job | None:
        options = self._options
        if self._lacks_room():
            return None
        try:
            for path, state in journal.reclaim(most_attempts=options.most_attempts):
                self.log.write("reclaimed", slide=str(path), state=state)
                if state is State.QUARANTINED:
                    self._report(path, "the process that embedded it ended each time", options.most_attempts)
            job = journal.claim(time.time(), longest_pause_s=pause_s(options.retry_s, options.most_attempts + 1))
        except sqlite3.Error as error:
            self._stop.wait(self._troubles.met("journal", f"{self._state / JOURNAL} cannot be written: {error}", error))
            return None
        self._troubles.over("journal")
        return job

    def _lacks_room(self) -> bool:
        least = self._options.min_free_gb
        for place in (self.out, self._state) if least else ():
            lack: OSError | InputError
            try:
                if shutil.disk_usage(place).free >= least * 1e9:
                    continue
                lack = InputError(f"less than --min-free {least:g} GB are left on its disk")
            except OSError as error:
                lack = error
            self._stop.wait(self._troubles.met("room", f"{place} cannot be written: {reason_of(lack)}", lack))
            return True
        self._troubles.over("room")
        return False

    def _work_of(self, out: Path) -> Path | None:
        if self._state == self.out:
            return None
        return self._state / "work" / (out.relative_to(self.out).parent if self.out in out.parents else "")

    def _folder_of(self, path: Path) -> Path:
        return next(folder for folder in self._folders if folder in path.parents)

    def _outs(self, path: Path) -> Iterator[Path]:
        for place in output_names(path, self._folder_of(path), self.out, self._options.form):
            said = attributes_of(place) if place.exists() else None
            if said is None or is_of_slide(said, path):
                yield place

    def _holds(self, path: Path, identity: SlideIdentity, out: Path) -> bool:
        """Whether an output holds a slide's embeddings by this plan, be it that the journal does not know."""
        said = attributes_of(out) if out.exists() else None
        if said is None or not is_of_slide(said, path) or not is_current(out, said, identity):
            return False
        different = differences(said, self._plan)
        if different and not self._options.re_embed:
            raise other_plan(out, different)
        return not different

    def _embed(self, journal: WatchJournal, job: Job) -> None:
        before: SlideIdentity | None = None
        try:
            before = slide_identity(job.path)
            if self._holds(job.path, before, job.out):
                self._troubles.over("disk")
                self._done(journal, job, tiles=0)
                self.log.write("already embedded", slide=str(job.path))
                return
            self._check_place(job)
            self.log.write("begin", slide=str(job.path), attempt=job.attempts, process=os.getpid())
            result = embed_slide(
                job.path,
                self._encoder,
                job.out,
                self._config,
                bundle_sha256=self._sha256,
                progress=self._progress_of(journal, job),
                work=self._work_of(job.out),
            )
            self._finish(journal, job, result)
        except sqlite3.Error as error:
            # What became of the slide could not be written down: it is reclaimed, and seen to be embedded.
            self._stop.wait(self._troubles.met("journal", f"{self._state / JOURNAL} cannot be written: {error}", error))
        except Exception as error:
            with suppress(sqlite3.Error):
                self._failed(journal, job, before, error)
        except BaseException:
            with suppress(sqlite3.Error):
                journal.give_back(job)
            self.log.write("interrupted", slide=str(job.path))
            raise

    def _check_place(self, job: Job) -> None:
        """Never replace unasked what is no output of this slide."""
        said = attributes_of(job.out) if job.out.exists() else {}
        if said is None and not self._options.re_embed:
            raise not_its_output(job.out, said, "--re-embed")
        if said is not None and not is_of_slide(said, job.path):
            raise not_its_output(job.out, said, "")

    def _finish(self, journal: WatchJournal, job: Job, result: SlideResult) -> None:
        self._troubles.over("disk")
        self._troubles.over("encoder")
        self.log.write(
            "done",
            slide=str(job.path),
            out=str(job.out),
            tiles=result.tiles,
            resumed_tiles=result.resumed_tiles,
            skipped_tiles=result.skipped_tiles,
            seconds=round(result.seconds, 3),
            unreadable=result.unreadable,
        )
        self._done(journal, job, tiles=result.tiles)

    def _done(self, journal: WatchJournal, job: Job, *, tiles: int) -> None:
        journal.finish(job, tiles=tiles, now=time.time())
        with suppress(OSError):
            remove_report(report_of(self._state, self._folder_of(job.path), job.path))

    def _failed(self, journal: WatchJournal, job: Job, before: SlideIdentity | None, error: Exception) -> None:
        """Count an attempt, unless it was no fault of the slide."""
        again = time.time() + self._options.retry_s
        # Several times before `once` gives up.
        soon = time.time() + min(self._options.retry_s, _GIVE_UP_S / 4)
        if not isinstance(error, DiskFull):
            self._troubles.over("disk")
        if isinstance(error, NoTissue):
            self._done(journal, job, tiles=0)
            self.log.write("no tissue", slide=str(job.path), reason=error.message)
        elif isinstance(error, DiskFull):
            self._troubles.met("disk", error.message, error)
            journal.give_back(job, error.message, next_try_at=soon)
            self.log.write("disk full", slide=str(job.path), error=error.message)
        elif error is self._encoder.raised and not self._encoder.works():
            self._wait_for_encoder(journal, job, error, soon)
        elif isinstance(error, OutputBusy):
            journal.give_back(job, error.message, next_try_at=again)
            self.log.write("busy", slide=str(job.path), error=error.message)
        elif (now := _look(job.path)) is None or now != before:
            # The share is gone, the scanner still writes, or somebody renamed it: the next look at the folder tells.
            journal.give_back(job, reason_of(error), next_try_at=again)
            self.log.write("gone" if now is None else "changed", slide=str(job.path), error=reason_of(error))
        else:
            self._fail(journal, job, error)

    def _wait_for_encoder(self, journal: WatchJournal, job: Job, error: Exception, soon: float) -> None:
        what = error.message if isinstance(error, AtlasError) else reason_of(error)
        reason = f"the encoder fails, on white tiles, too: {what}"
        journal.give_back(job, reason, next_try_at=soon)
        self.log.write("encoder failed", slide=str(job.path), error=reason)
        lost = error
        if not isinstance(error, AtlasError):
            lost = RuntimeMissing(reason)
            lost.__cause__ = error
        self._stop.wait(self._troubles.met("encoder", reason, lost))

    def _fail(self, journal: WatchJournal, job: Job, error: Exception) -> None:
        options, reason = self._options, failure_of(error)
        state = journal.fail(job, reason, now=time.time(), most_attempts=options.most_attempts, retry_s=options.retry_s)
        where = {} if isinstance(error, InputError | UsageError) else {"traceback": traceback.format_exc()}
        self.log.write("failed", slide=str(job.path), attempt=job.attempts, state=state, error=reason, **where)
        if state is State.QUARANTINED:
            self._report(job.path, reason, job.attempts)

    def _progress_of(self, journal: WatchJournal, job: Job) -> Callable[[int, int], None]:
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= _PROGRESS_S or done == total:
                # Not worth a slide.
                with suppress(sqlite3.Error):
                    journal.progress(job, done, total)
                told = time.monotonic()

        return progress

    def _report(self, path: Path, error: str, attempts: int) -> None:
        report = report_of(self._state, self._folder_of(path), path)
        try:
            write_report(report, path, error, attempts)
        except OSError as failed:
            self.log.write("no report", slide=str(path), error=reason_of(failed))
        else:
            self._on_quarantine.told(report)


def _look(path: Path) -> SlideIdentity | None:
    try:
        return slide_identity(path)
    except OSError:
        return None
