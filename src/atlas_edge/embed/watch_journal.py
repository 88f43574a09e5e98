"""What the watcher knows of every slide, in SQLite: it outlives the process and serves several of them."""

import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

_HOUR_S = 3600.0
_BUSY_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS slides (
    path TEXT PRIMARY KEY,
    out TEXT NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    seen_at REAL NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try_at REAL NOT NULL DEFAULT 0,
    owner TEXT,
    tiles_done INTEGER NOT NULL DEFAULT 0,
    tiles INTEGER NOT NULL DEFAULT 0,
    started_at REAL,
    finished_at REAL,
    error TEXT
)
"""


class State(StrEnum):
    """Where a slide stands."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A slide that was claimed: nobody else works on it."""

    path: Path
    out: Path
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """For the table and the page.

    Attributes:
        counts: Slides in each state.
        slides_per_hour: Finished within the last hour.
        rows: Unfinished slides, then the latest finished, at most `limit`.
        errors: The latest errors, newest first.
    """

    counts: dict[str, int]
    slides_per_hour: int
    rows: list[dict[str, Any]]
    errors: list[dict[str, Any]]


class WatchJournal:
    """A connection; open one in each thread.

    Args:
        path: SQLite file, on a local disk.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._write_ahead()
        self._connection.execute(_SCHEMA)
        self._owner = _owner_of(psutil.Process())

    def _write_ahead(self) -> None:
        """Turn on the write-ahead log; SQLite does not wait for another connection that is just doing so."""
        until = time.monotonic() + _BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    self._connection.close()
                    raise
            time.sleep(0.02)

    def observe(
        self, path: Path, outs: list[Path], *, size_bytes: int, mtime_ns: int, now: float, settle_s: float, marked: bool
    ) -> str | None:
        """Note what a file looks like now; it is queued once it has looked so for long enough, or is marked as done.

        Args:
            path: Slide.
            outs: Where its embeddings may go, the first that is free.
            size_bytes: Of the slide.
            mtime_ns: Of the slide.
            now: Seconds since the epoch.
            settle_s: How long size and time must stay as they are.
            marked: Its `.done` marker is there.

        Returns:
            `found`, `changed`, `queued` or `already embedded`; None where nothing happened.
        """
        with self._transaction() as sql:
            row = sql.execute("SELECT * FROM slides WHERE path = ?", (str(path),)).fetchone()
            if row is None:
                return self._insert(sql, path, outs, size_bytes, mtime_ns, now)
            same = (row["size_bytes"], row["mtime_ns"]) == (size_bytes, mtime_ns)
            if row["state"] == State.RUNNING:
                return None
            if not same:
                sql.execute(
                    "UPDATE slides SET size_bytes = ?, mtime_ns = ?, seen_at = ?, state = ?, attempts = 0, "
                    "next_try_at = 0, error = NULL WHERE path = ?",
                    (size_bytes, mtime_ns, now, State.WAITING, str(path)),
                )
                return "changed" if row["state"] != State.WAITING else None
            if row["state"] == State.WAITING and (marked or now - row["seen_at"] >= settle_s):
                sql.execute("UPDATE slides SET state = ? WHERE path = ?", (State.QUEUED, str(path)))
                return "queued"
            return None

    def claim(self, now: float) -> Job | None:
        """Take the slide that has waited longest, or None where there is none to take."""
        with self._transaction() as sql:
            row = sql.execute(
                "SELECT * FROM slides WHERE state = ? AND next_try_at <= ? ORDER BY seen_at, path LIMIT 1",
                (State.QUEUED, now),
            ).fetchone()
            if row is None:
                return None
            sql.execute(
                "UPDATE slides SET state = ?, owner = ?, attempts = attempts + 1, started_at = ?, tiles_done = 0 "
                "WHERE path = ?",
                (State.RUNNING, self._owner, now, row["path"]),
            )
            return Job(path=Path(row["path"]), out=Path(row["out"]), attempts=row["attempts"] + 1)

    def progress(self, job: Job, done: int, total: int) -> None:
        """Note how far a claimed slide is."""
        self._set(job, "tiles_done = ?, tiles = ?", done, total)

    def finish(self, job: Job, *, tiles: int, now: float) -> None:
        """A slide is embedded."""
        self._set(
            job,
            "state = ?, owner = NULL, tiles = ?, tiles_done = ?, finished_at = ?, error = NULL",
            *(State.DONE, tiles, tiles, now),
        )

    def fail(self, job: Job, error: str, *, now: float, most_attempts: int, retry_s: float) -> State:
        """A slide failed: it is queued again after a pause that doubles, or quarantined after the last attempt."""
        state = State.QUEUED if job.attempts < most_attempts else State.QUARANTINED
        pause = retry_s * 2 ** (job.attempts - 1)
        self._set(
            job,
            "state = ?, owner = NULL, error = ?, next_try_at = ?, finished_at = ?",
            *(state, error, now + pause, now),
        )
        return state

    def give_back(self, job: Job, error: str | None = None, *, next_try_at: float = 0.0) -> None:
        """Queue a claimed slide again without counting an attempt."""
        self._set(
            job,
            "state = ?, owner = NULL, attempts = attempts - 1, error = ?, next_try_at = ?",
            *(State.QUEUED, error, next_try_at),
        )

    def reclaim(self, *, most_attempts: int) -> list[tuple[Path, State]]:
        """Queue what processes of this machine that are gone had claimed; quarantine what killed them too often."""
        with self._transaction() as sql:
            rows = sql.execute("SELECT path, owner, attempts FROM slides WHERE state = ?", (State.RUNNING,)).fetchall()
            orphans = []
            for row in rows:
                if _is_alive(row["owner"]):
                    continue
                state = State.QUEUED if row["attempts"] < most_attempts else State.QUARANTINED
                sql.execute(
                    "UPDATE slides SET state = ?, owner = NULL, next_try_at = 0, error = ? WHERE path = ?",
                    (state, "the process that embedded it ended", row["path"]),
                )
                orphans.append((Path(row["path"]), state))
            return orphans

    def unfinished(self) -> int:
        """Slides that still have to be embedded, by whomever."""
        states = (State.WAITING, State.QUEUED, State.RUNNING)
        return int(
            self._connection.execute("SELECT COUNT(*) FROM slides WHERE state IN (?, ?, ?)", states).fetchone()[0]
        )

    def status(self, now: float, *, limit: int = 50) -> Status:
        """See `Status`."""
        run: Callable[..., Any] = self._connection.execute
        counts = {state.value: 0 for state in State}
        counts.update(run("SELECT state, COUNT(*) FROM slides GROUP BY state").fetchall())
        hourly = run(
            "SELECT COUNT(*) FROM slides WHERE state = ? AND finished_at > ?", (State.DONE, now - _HOUR_S)
        ).fetchone()[0]
        rows = run(
            "SELECT path, state, attempts, tiles_done, tiles, started_at, finished_at, error FROM slides "
            "ORDER BY state = 'running' DESC, state = 'queued' DESC, state = 'waiting' DESC, finished_at DESC LIMIT ?",
            (limit,),
        )
        errors = run(
            "SELECT path, state, attempts, error, finished_at FROM slides WHERE error IS NOT NULL "
            "ORDER BY finished_at DESC LIMIT 10"
        )
        return Status(
            counts=counts,
            slides_per_hour=int(hourly),
            rows=[dict(row) for row in rows.fetchall()],
            errors=[dict(row) for row in errors.fetchall()],
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _insert(
        self, sql: sqlite3.Connection, path: Path, outs: list[Path], size_bytes: int, mtime_ns: int, now: float
    ) -> str:
        taken = {row[0] for row in sql.execute("SELECT out FROM slides").fetchall()}
        out = next(out for out in outs if str(out) not in taken)
        # A lost journal must not embed everything once more.
        embedded = out.exists() and out.stat().st_mtime_ns >= mtime_ns
        state = State.DONE if embedded else State.WAITING
        sql.execute(
            "INSERT INTO slides (path, out, size_bytes, mtime_ns, seen_at, state) VALUES (?, ?, ?, ?, ?, ?)",
            (str(path), str(out), size_bytes, mtime_ns, now, state),
        )
        return "already embedded" if embedded else "found"

    def _set(self, job: Job, assignment: str, *values: Any) -> None:
        # Only where it is still ours.
        self._connection.execute(
            f"UPDATE slides SET {assignment} WHERE path = ? AND owner = ?", (*values, str(job.path), self._owner)
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _owner_of(process: psutil.Process) -> str:
    return f"{socket.gethostname()}/{process.pid}/{int(process.create_time())}"


def _is_alive(owner: str | None) -> bool:
    host, pid, started = (owner or "//").split("/")
    if host != socket.gethostname():
        # Another machine's process cannot be seen from here.
        return bool(owner)
    if int(pid) == os.getpid():
        return True
    try:
        return abs(int(psutil.Process(int(pid)).create_time()) - int(started)) <= 1
    except psutil.NoSuchProcess:
        return False
