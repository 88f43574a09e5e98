"""A command of the lab's own for each slide that is set aside: it sends the mail, or opens the ticket."""

import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from atlas_edge.embed.watch.event_log import EventLog
from atlas_edge.errors import UsageError

REPORT = "ATLAS_EMBED_REPORT"
"""In the environment of the command: the report's path."""

_LIMIT_S = 60.0
_END_S = 5.0
_TOLD_CHARACTERS = 2000


def arguments_of(command: str) -> list[str]:
    """The words of a command line, without a shell; backslashes of Windows stay.

    Raises:
        UsageError: A quote that is never closed, or a program that is not there.
    """
    words = shlex.shlex(command, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    if sys.platform == "win32":
        words.escape = ""
    try:
        found = list(words)
    except ValueError as error:
        raise UsageError(f"--on-quarantine {command}: {error}", hint="close the quote") from error
    if not found or shutil.which(found[0]) is None:
        raise UsageError(
            f"--on-quarantine {command}: {found[0] if found else 'nothing'} is not a program that can be run",
            hint="give its whole path; it is run without a shell",
        )
    return found


class OnQuarantine:
    """Runs a command beside the watcher, one call after another; whatever becomes of it is logged and stops nobody.

    Args:
        command: See `arguments_of`; nothing is run where it is empty.
        log: Where it is noted.
        limit_s: After so long it is ended.
    """

    def __init__(self, command: str, log: EventLog, *, limit_s: float = _LIMIT_S) -> None:
        self._arguments = arguments_of(command) if command else []
        self._log, self._limit_s = log, limit_s
        self._reports: queue.Queue[Path | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def told(self, report: Path) -> None:
        """Run the command for a report: its last argument, and in the environment."""
        if not self._arguments:
            return
        self._reports.put(report)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_on, name="on quarantine", daemon=True)
            self._thread.start()

    def close(self, *, at_once: bool = False) -> None:
        """Wait for what was told, for as long as one command may take; for a moment only if `at_once`."""
        if self._thread is None:
            return
        self._reports.put(None)
        self._thread.join(timeout=_END_S if at_once else self._limit_s + _END_S)
        if self._thread.is_alive():
            self._log.write("on quarantine", error="the watcher ended before it did")

    def _run_on(self) -> None:
        while (report := self._reports.get()) is not None:
            try:
                self._run(report)
            except (OSError, subprocess.SubprocessError) as error:
                self._log.write("on quarantine", report=str(report), error=f"{type(error).__name__}: {error}")

    def _run(self, report: Path) -> None:
        process = subprocess.Popen(
            [*self._arguments, str(report)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, REPORT: str(report)},
            # Ctrl-C is for the watcher; and what it starts is ended with it.
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=self._limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            self._log.write("on quarantine", report=str(report), error=f"ended after {self._limit_s:g} s")
            return
        told = {} if process.returncode == 0 else {"error": said.decode(errors="replace")[-_TOLD_CHARACTERS:].strip()}
        self._log.write("on quarantine", report=str(report), exit_code=process.returncode, **told)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it with what it has started, also where something of that holds its output open."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
