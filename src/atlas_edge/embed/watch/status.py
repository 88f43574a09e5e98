"""How the watcher stands: what its journal says, and what only the process itself knows."""

import sqlite3
from dataclasses import asdict, dataclass, field
from typing import Any

from atlas_edge.embed.watch.schema import State, path_of

_HOUR_S = 3600.0
_LATEST = 20
"""Slides by whose time the rest is reckoned."""
_COLUMNS = (
    "rowid AS number, path, out, folder, state, attempts, tiles_done, tiles, seen_at, started_at, finished_at, error"
)
_UNFINISHED = "state IN ('waiting', 'queued', 'running')"
# What was there already when the journal was made neither came nor was embedded.
_CAME = "seen_at > ? AND (state != 'done' OR finished_at IS NOT NULL)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What the journal does not hold.

    Attributes:
        about: What runs, by what it is called on the page: folder, bundle, device, scale.
        tiles: Embedded by this process.
        tiles_per_s: Within the last minute.
        look_age_s: Since the folder was last looked at, seconds; since the start where it never was.
        look_s: How long that took.
        look_due_s: An age at which something is wrong.
        sign_age_s: Since the watcher last embedded a batch, or asked for work.
        free_bytes: Left on the disk of --out or --state, whichever is fuller; None where that cannot be said.
        waits_for: Kinds of what it waits for, such as `disk`, and since when, seconds.
    """

    about: dict[str, str] = field(default_factory=dict)
    tiles: int = 0
    tiles_per_s: float = 0.0
    look_age_s: float = 0.0
    look_s: float = 0.0
    look_due_s: float = float("inf")
    sign_age_s: float = 0.0
    free_bytes: int | None = None
    waits_for: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """For the table and the page.

    Attributes:
        counts: Slides in each state; empty where the journal cannot be read.
        slides_per_hour: Embedded within the last hour.
        rows: Unfinished slides, then the latest finished, at most `limit`.
        errors: The latest errors, newest first.
        problem: What the watcher waits for: a folder that is gone, a full disk; "" where all is well.
        arrived: Slides that came within the last hour.
        finished: Embedded or quarantined within the last hour.
        slides_left: Still to be embedded.
        work_left_s: Seconds of one watcher's work that is left, at the pace of the latest slides, which also say how
            many tiles are in files that nobody has opened yet; None where no pace is known.
        work_arrived_s: Of what came within the last hour.
        workers: Watchers that embed.
        live: See `Live`.
    """

    counts: dict[str, int]
    slides_per_hour: int
    rows: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    problem: str = ""
    arrived: int = 0
    finished: int = 0
    slides_left: int = 0
    work_left_s: float | None = None
    work_arrived_s: float | None = None
    workers: int = 0
    live: Live = field(default_factory=Live)

    @property
    def queue_end_s(self) -> float | None:
        """Seconds until nothing is left; None where no pace is known."""
        if self.slides_left == 0:
            return 0.0
        return None if self.work_left_s is None else self.work_left_s / max(self.workers, 1)

    @property
    def keeps_up(self) -> bool | None:
        """No more work came within the last hour than can be done in one; None where no pace is known."""
        return None if self.work_arrived_s is None else self.work_arrived_s <= _HOUR_S * max(self.workers, 1)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        found = {**asdict(self), "queue_end_s": self.queue_end_s, "keeps_up": self.keeps_up}
        found["live"].pop("look_due_s")
        return found


def read_status(sql: sqlite3.Connection, now: float, *, limit: int) -> Status:
    """What a journal says; see `Status`."""
    counts = {state.value: 0 for state in State}
    counts.update(sql.execute("SELECT state, COUNT(*) FROM slides GROUP BY state").fetchall())
    since = now - _HOUR_S
    finished = dict(
        sql.execute(
            "SELECT state, COUNT(*) FROM slides WHERE state IN ('done', 'quarantined') AND finished_at > ? "
            "GROUP BY state",
            (since,),
        ).fetchall()
    )
    (arrived,) = sql.execute(f"SELECT COUNT(*) FROM slides WHERE {_CAME}", (since,)).fetchone()
    left, workers = sql.execute(f"SELECT COUNT(*), COUNT(DISTINCT owner) FROM slides WHERE {_UNFINISHED}").fetchone()
    work_left_s, work_arrived_s = _work(sql, now)
    errors = sql.execute(f"SELECT {_COLUMNS} FROM slides WHERE error IS NOT NULL ORDER BY finished_at DESC LIMIT 10")
    return Status(
        counts=counts,
        slides_per_hour=finished.get(State.DONE, 0),
        rows=_rows(sql, limit),
        errors=[_readable(row) for row in errors.fetchall()],
        arrived=arrived,
        finished=sum(finished.values()),
        slides_left=left,
        work_left_s=work_left_s,
        work_arrived_s=work_arrived_s,
        workers=workers,
    )


def read_slide(sql: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    """One slide by its number; None where there is none."""
    row = sql.execute(f"SELECT {_COLUMNS} FROM slides WHERE rowid = ?", (number,)).fetchone()
    return None if row is None else _readable(row)


def _rows(sql: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    rows = sql.execute(
        f"SELECT {_COLUMNS} FROM slides WHERE {_UNFINISHED} "
        "ORDER BY state = 'running' DESC, state = 'queued' DESC, seen_at, path LIMIT ?",
        (limit,),
    ).fetchall()
    latest = [
        row
        for state in (State.DONE, State.QUARANTINED)
        for row in sql.execute(
            f"SELECT {_COLUMNS} FROM slides WHERE state = ? ORDER BY finished_at DESC LIMIT ?", (state, limit)
        ).fetchall()
    ]
    latest.sort(key=lambda row: row["finished_at"] or 0.0, reverse=True)
    return [_readable(row) for row in [*rows, *latest][:limit]]


def _work(sql: sqlite3.Connection, now: float) -> tuple[float, float] | tuple[None, None]:
    """Seconds of work that is left, and that came within the last hour."""
    tiles, size_bytes, done, seconds = sql.execute(
        "SELECT SUM(tiles), SUM(size_bytes), SUM(tiles_done), SUM(until - started_at) FROM ("
        "SELECT tiles, size_bytes, tiles_done, started_at, ? AS until FROM slides "
        "WHERE state = 'running' AND tiles > 0 UNION ALL SELECT * FROM ("
        "SELECT tiles, size_bytes, tiles_done, started_at, finished_at FROM slides "
        "WHERE state = 'done' AND tiles > 0 AND started_at IS NOT NULL ORDER BY finished_at DESC LIMIT ?))",
        (now, _LATEST),
    ).fetchone()
    if not (tiles and size_bytes and done and seconds > 0):
        return None, None
    share, pace = tiles / size_bytes, done / seconds
    (left,) = sql.execute(
        "SELECT TOTAL(CASE WHEN tiles > 0 THEN tiles - tiles_done ELSE ? * size_bytes END) FROM slides "
        f"WHERE {_UNFINISHED}",
        (share,),
    ).fetchone()
    (arrived,) = sql.execute(
        f"SELECT TOTAL(CASE WHEN tiles > 0 THEN tiles WHEN {_UNFINISHED} THEN ? * size_bytes ELSE 0 END) FROM slides "
        f"WHERE {_CAME}",
        (share, now - _HOUR_S),
    ).fetchone()
    return left / pace, arrived / pace


def _readable(row: sqlite3.Row) -> dict[str, Any]:
    paths = {name: str(path_of(row[name])) for name in ("path", "out", "folder")}
    return {**dict(row), **paths}
