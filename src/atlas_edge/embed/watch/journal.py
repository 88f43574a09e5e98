"""What the watcher knows of every slide, in SQLite: it outlives the process and serves several of them."""

import secrets
import socket
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_edge.embed.resume.plan import Plan, differences
from atlas_edge.embed.slide_files import SlideIdentity
from atlas_edge.embed.watch.owners import Owners
from atlas_edge.embed.watch.schema import State, open_journal, path_of, read_plan, stored_path, write_plan
from atlas_edge.embed.watch.status import Status, read_slide, read_status
from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.paths import printable
from atlas_edge.system.process import ProcessId

_MOST_DOUBLINGS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A slide that was claimed: nobody else works on it."""

    path: Path
    out: Path
    attempts: int


def pause_s(retry_s: float, attempts: int) -> float:
    """Pause after so many attempts, seconds: it doubles each time, for some millennia."""
    return retry_s * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS)


class WatchJournal:
    """A connection; open one in each thread.

    Args:
        path: SQLite file.
        folders: The drop folders whose slides are claimed; it is in the first that slides are observed.
        owner: Of another connection of this watcher; a new one when None.
    """

    def __init__(self, path: Path, *folders: Path, owner: str | None = None) -> None:
        self._connection = open_journal(path)
        self._folders = [stored_path(folder) for folder in folders or (Path(),)]
        self._folder = self._folders[0]
        self._ours = f"folder IN ({', '.join('?' * len(self._folders))})"
        self.owner = owner or f"{socket.gethostname()}/{ProcessId.current()}/{secrets.token_hex(4)}"
        self._plan: Plan | None = None
        self._owners = Owners(self.owner)

    def adopt(self, plan: Plan, *, replace: bool = False, on_wait: Callable[[], None] = lambda: None) -> list[str]:
        """Work by a plan from now on; the first slide that is claimed gives it to the journal.

        Args:
            plan: See `plan_of`.
            replace: Put it in the place of another one: slides that are done are queued again. What was set aside for
                want of this option, or of a scale that is given now, is queued again in any case.
            on_wait: Called before it waits for a sign of life of a watcher that may have ended.

        Returns:
            What differs from the plan that the journal has: nothing must be claimed then.

        Raises:
            UsageError: Another watcher works by the plan that is to be replaced.
        """
        self._plan = plan
        before = read_plan(self._connection)
        different = [] if before is None else differences(before, plan)
        if not different:
            self._queue_what_lacked({"--mpp": "given_mpp" in plan, "--re-embed": replace})
        if not different or not replace:
            return different
        query = "SELECT owner, beat FROM slides WHERE state = ?"
        self._owners.wait_for_signs(lambda: self._connection.execute(query, (State.RUNNING,)).fetchall(), on_wait)
        with self._transaction() as sql:
            running = sql.execute(query, (State.RUNNING,)).fetchall()
            if len(self._owners.orphans(running)) < len(running):
                raise UsageError("another watcher works on the same --out by another plan", hint="stop it first")
            write_plan(sql, plan)
            sql.execute(
                "UPDATE slides SET state = ?, attempts = 0, next_try_at = 0, error = NULL WHERE state IN (?, ?)",
                (State.QUEUED, State.DONE, State.QUARANTINED),
            )
        return []

    def unplanned(self) -> list[Path]:
        """Outputs of slides that were done before the journal had a plan."""
        if read_plan(self._connection) is not None:
            return []
        rows = self._connection.execute("SELECT out FROM slides WHERE state = ?", (State.DONE,))
        return [path_of(row["out"]) for row in rows.fetchall()]

    def queue_again(self, out: Path) -> None:
        """Have a slide that is done embedded again."""
        self._connection.execute("UPDATE slides SET state = ? WHERE out = ?", (State.QUEUED, stored_path(out)))

    def observe(
        self,
        path: Path,
        outs: Iterable[Path],
        *,
        identity: SlideIdentity,
        now: float,
        ready: bool,
        embedded: Callable[[Path], bool] = lambda _: False,
    ) -> str | None:
        """Note what a slide looks like now; it is queued once it is ready.

        Args:
            path: Slide.
            outs: Where its embeddings may go, the first that is free.
            identity: What its files look like.
            now: Seconds since the epoch.
            ready: It has looked so for long enough, or is marked as done.
            embedded: Says of one of `outs` whether it holds the slide's embeddings; for when the journal was lost.

        Returns:
            `found`, `changed`, `queued`, `moved` or `already embedded`; None where nothing happened.
        """
        looks = (identity.size_bytes, identity.mtime_ns)
        # Mostly nothing has happened, which takes no lock to see.
        row = self._row(path)
        if row is not None and row["folder"] == self._folder:
            same = (row["size_bytes"], row["mtime_ns"]) == looks
            if row["state"] == State.RUNNING or (same and (row["state"] != State.WAITING or not ready)):
                return None
        with self._transaction() as sql:
            row = self._row(path)
            if row is None:
                return self._insert(sql, path, outs, identity, now, embedded)
            if row["folder"] != self._folder:
                sql.execute("UPDATE slides SET folder = ? WHERE path = ?", (self._folder, stored_path(path)))
            if row["state"] == State.RUNNING:
                return None
            if (row["size_bytes"], row["mtime_ns"]) != looks:
                sql.execute(
                    "UPDATE slides SET size_bytes = ?, mtime_ns = ?, seen_at = ?, state = ?, attempts = 0, "
                    "next_try_at = 0, error = NULL WHERE path = ?",
                    (*looks, now, State.WAITING, stored_path(path)),
                )
                return "changed" if row["state"] != State.WAITING else None
            if row["state"] == State.WAITING and ready:
                sql.execute("UPDATE slides SET state = ? WHERE path = ?", (State.QUEUED, stored_path(path)))
                return "queued"
            return None

    def forget(self, seen: set[Path], unread: list[Path], *, all_of_them: bool = True) -> list[Path]:
        """Drop unfinished slides that are not in the folder any more: renamed, moved or deleted.

        Args:
            seen: Slides that are there.
            unread: Folders that could not be looked into.
            all_of_them: Also where no slide is left; what lies on a share is back once that is mounted again.

        Raises:
            InputError: No slide is left, and not all of them are to be dropped.
        """
        rows = self._connection.execute(
            "SELECT path FROM slides WHERE folder = ? AND state IN (?, ?)", (self._folder, State.WAITING, State.QUEUED)
        ).fetchall()
        paths = [path_of(row["path"]) for row in rows]
        gone = [path for path in paths if path not in seen and not any(folder in path.parents for folder in unread)]
        if gone and not seen and not all_of_them:
            raise InputError(f"none of {len(gone)} slides that were waiting is there any more")
        for path in gone:
            self._connection.execute(
                "DELETE FROM slides WHERE path = ? AND state IN (?, ?)",
                (stored_path(path), State.WAITING, State.QUEUED),
            )
        return gone

    def claim(self, now: float, *, longest_pause_s: float = float("inf")) -> Job | None:
        """Take the slide that has waited longest, or None where there is none to take.

        Args:
            now: Seconds since the epoch.
            longest_pause_s: No slide waits longer for its next attempt, whatever became of the clock meanwhile.

        Raises:
            UsageError: The folder of embeddings has been given another plan.
        """
        due = (State.QUEUED, *self._folders, now, now + longest_pause_s)
        query = (
            f"SELECT * FROM slides WHERE state = ? AND {self._ours} AND (next_try_at <= ? OR next_try_at > ?) "
            "ORDER BY seen_at, path LIMIT 1"
        )
        if self._connection.execute(query, due).fetchone() is None:
            return None
        with self._transaction() as sql:
            self._check_plan(sql)
            row = sql.execute(query, due).fetchone()
            if row is None:
                return None
            sql.execute(
                "UPDATE slides SET state = ?, owner = ?, attempts = attempts + 1, started_at = ?, tiles_done = 0 "
                "WHERE path = ?",
                (State.RUNNING, self.owner, now, row["path"]),
            )
            return Job(path=path_of(row["path"]), out=path_of(row["out"]), attempts=row["attempts"] + 1)

    def progress(self, job: Job, done: int, total: int) -> None:
        """Note how far a claimed slide is."""
        self._set(job, "tiles_done = ?, tiles = ?", done, total)

    def beat(self) -> None:
        """Show watchers on other machines and in other containers that this one is alive."""
        self._connection.execute("UPDATE slides SET beat = beat + 1 WHERE owner = ?", (self.owner,))

    def finish(self, job: Job, *, tiles: int, now: float) -> None:
        """A slide is embedded, or has nothing to embed."""
        self._set(
            job,
            "state = ?, owner = NULL, tiles = ?, tiles_done = ?, finished_at = ?, error = NULL",
            *(State.DONE, tiles, tiles, now),
        )

    def fail(self, job: Job, error: str, *, now: float, most_attempts: int, retry_s: float) -> State:
        """A slide failed: it is queued again after a pause that doubles, or quarantined after the last attempt."""
        state = State.QUEUED if job.attempts < most_attempts else State.QUARANTINED
        self._set(
            job,
            "state = ?, owner = NULL, error = ?, next_try_at = ?, finished_at = ?",
            *(state, printable(error), now + pause_s(retry_s, job.attempts), now),
        )
        return state

    def give_back(self, job: Job, error: str | None = None, *, next_try_at: float = 0.0) -> None:
        """Queue a claimed slide again without counting an attempt."""
        self._set(
            job,
            "state = ?, owner = NULL, attempts = attempts - 1, error = ?, next_try_at = ?",
            *(State.QUEUED, error and printable(error), next_try_at),
        )

    def reclaim(self, *, most_attempts: int) -> list[tuple[Path, State]]:
        """Queue what watchers that are gone had claimed; quarantine what killed them too often.

        What this very watcher had claimed is queued, too, and counts as no attempt: it asks only when it does
        nothing, so that a full disk must have kept it from saying what became of the slide.
        """
        query = f"SELECT path, owner, attempts, beat FROM slides WHERE state = ? AND {self._ours}"
        running = (State.RUNNING, *self._folders)
        if not self._owners.orphans(self._connection.execute(query, running).fetchall()):
            return []
        with self._transaction() as sql:
            freed = []
            for row in self._owners.orphans(sql.execute(query, running).fetchall()):
                attempts = row["attempts"] - (row["owner"] == self.owner)
                state = State.QUEUED if attempts < most_attempts else State.QUARANTINED
                sql.execute(
                    "UPDATE slides SET state = ?, owner = NULL, attempts = ?, next_try_at = 0, error = ? "
                    "WHERE path = ?",
                    (state, attempts, "the process that embedded it ended", row["path"]),
                )
                freed.append((path_of(row["path"]), state))
            return freed

    def unfinished(self, *, waiting: bool = True) -> int:
        """Slides that still have to be embedded, by whomever; without those that wait to be finished if asked to."""
        states = (State.QUEUED, State.RUNNING, State.WAITING if waiting else State.QUEUED)
        query = f"SELECT COUNT(*) FROM slides WHERE {self._ours} AND state IN (?, ?, ?)"
        return int(self._connection.execute(query, (*self._folders, *states)).fetchone()[0])

    def status(self, now: float, *, limit: int = 50) -> Status:
        """See `Status`."""
        return read_status(self._connection, now, limit=limit)

    def slide(self, number: int) -> dict[str, Any] | None:
        """One slide by the number that `status` gives it; None where there is none."""
        return read_slide(self._connection, number)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _queue_what_lacked(self, options: dict[str, bool]) -> None:
        """Queue again what was quarantined with an error that asks for one of the options that are given now."""
        for option in (name for name, is_given in options.items() if is_given):
            self._connection.execute(
                "UPDATE slides SET state = ?, attempts = 0, next_try_at = 0, error = NULL "
                "WHERE state = ? AND error LIKE ?",
                (State.QUEUED, State.QUARANTINED, f"%fix: %{option}%"),
            )

    def _check_plan(self, sql: sqlite3.Connection) -> None:
        if self._plan is None:
            return
        before = read_plan(sql)
        if before is not None and differences(before, self._plan):
            raise UsageError("another watcher gave --out another plan", hint="stop it, or choose another --out")
        if before is None or before.keys() != self._plan.keys():
            write_plan(sql, {**(before or {}), **self._plan})

    def _row(self, path: Path) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._connection.execute(
            "SELECT * FROM slides WHERE path = ?", (stored_path(path),)
        ).fetchone()
        return found

    def _insert(
        self,
        sql: sqlite3.Connection,
        path: Path,
        outs: Iterable[Path],
        identity: SlideIdentity,
        now: float,
        embedded: Callable[[Path], bool],
    ) -> str:
        looks = (identity.size_bytes, identity.mtime_ns)
        for row in sql.execute("SELECT path FROM slides WHERE size_bytes = ? AND mtime_ns = ?", looks).fetchall():
            before = path_of(row["path"])
            if before.name == path.name and not before.exists():
                # The very file under another path: the share is mounted elsewhere, or the folder has a new name.
                sql.execute(
                    "UPDATE slides SET path = ?, folder = ? WHERE path = ?",
                    (stored_path(path), self._folder, row["path"]),
                )
                return "moved"
        taken = "SELECT 1 FROM slides WHERE out = ?"
        out = next(out for out in outs if sql.execute(taken, (stored_path(out),)).fetchone() is None)
        done = embedded(out)
        sql.execute(
            "INSERT INTO slides (path, folder, out, size_bytes, mtime_ns, seen_at, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (stored_path(path), self._folder, stored_path(out), *looks, now, State.DONE if done else State.WAITING),
        )
        return "already embedded" if done else "found"

    def _set(self, job: Job, assignment: str, *values: Any) -> None:
        # Only where it is still ours.
        self._connection.execute(
            f"UPDATE slides SET {assignment} WHERE path = ? AND owner = ?", (*values, stored_path(job.path), self.owner)
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled it back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
