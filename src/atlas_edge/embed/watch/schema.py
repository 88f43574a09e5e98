"""The watcher's SQLite file: its tables, their version, and the plan that all its slides are embedded by."""

import json
import os
import sqlite3
import time
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import psutil

from atlas_edge.embed.resume.plan import Plan
from atlas_edge.errors import InputError

JOURNAL = "atlas-embed.sqlite"

_VERSION = 1
_BUSY_S = 60.0
_NETWORK = ("nfs", "cifs", "smb", "sshfs", "9p", "afs", "ncpfs", "webdav", "davfs", "glusterfs", "ceph", "lustre")
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
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
);
"""
# Watchers and pages ask several times a second, of a hundred thousand slides, too.
_INDEXES = {
    "slides_by_state": "slides (state, finished_at)",
    "slides_by_arrival": "slides (seen_at)",
    "slides_by_error": "slides (finished_at) WHERE error IS NOT NULL",
}
_ADDED = {"folder": "TEXT NOT NULL DEFAULT ''", "beat": "INTEGER NOT NULL DEFAULT 0"}


class State(StrEnum):
    """Where a slide stands."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    QUARANTINED = "quarantined"


def open_journal(path: Path) -> sqlite3.Connection:
    """Connect, making the tables where they are missing.

    Raises:
        InputError: A newer version of atlas-edge wrote it, or it is no journal.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        _set_mode(connection, "DELETE" if is_on_network(path) else "WAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise InputError(
                f"{path} was written by a newer atlas-edge (version {version} of the journal, expected {_VERSION})",
                hint="update atlas-edge, or choose another --out",
            )
        if version < _VERSION or not _has_indexes(connection):
            _upgrade(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        if "not a database" in str(error) or "malformed" in str(error):
            raise InputError(
                f"{path} is damaged: {error}", hint="move it away: what is embedded is not embedded again"
            ) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def read_plan(sql: sqlite3.Connection) -> Plan | None:
    """The plan of a journal; None where none has been given to it."""
    row = sql.execute("SELECT value FROM meta WHERE key = 'plan'").fetchone()
    plan: Plan | None = None if row is None else json.loads(row["value"])
    return plan


def write_plan(sql: sqlite3.Connection, plan: Plan) -> None:
    """Give a journal its plan."""
    sql.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('plan', ?)", (json.dumps(plan),))


@lru_cache
def is_on_network(path: Path) -> bool:
    """Whether a file lies on another machine: the write-ahead log needs memory that its processes share."""
    where = path.absolute()
    if str(where).startswith("\\\\"):
        return True
    mounts = [part for part in psutil.disk_partitions(all=True) if Path(part.mountpoint) in where.parents]
    mount = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    if mount is None:
        return False
    kind = mount.fstype.lower().removeprefix("fuse.")
    return kind.startswith(_NETWORK) or "remote" in mount.opts.split(",")


def _upgrade(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in filter(str.strip, _TABLES.split(";")):
            connection.execute(statement)
        columns = {row["name"] for row in connection.execute("PRAGMA table_info(slides)")}
        for name, kind in _ADDED.items():
            if name not in columns:
                connection.execute(f"ALTER TABLE slides ADD COLUMN {name} {kind}")
        for name, what in _INDEXES.items():
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {what}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _has_indexes(connection: sqlite3.Connection) -> bool:
    found = {row["name"] for row in connection.execute("PRAGMA index_list(slides)")}
    return found >= _INDEXES.keys()


def _set_mode(connection: sqlite3.Connection, mode: str) -> None:
    """Set the journal's mode; SQLite does not wait for another connection that is just doing so."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode={mode}")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.02)


def stored_path(path: Path) -> str | bytes:
    """SQLite's text is UTF-8; names that are not are kept as their bytes."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return text


def path_of(stored: str | bytes) -> Path:
    """The path that `stored_path` wrote."""
    return Path(os.fsdecode(stored))
