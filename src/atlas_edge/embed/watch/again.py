"""What a person tells a journal of slides, also while watchers work by it: try them again, or forget them."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from atlas_edge.embed.watch.event_log import LOG, EventLog
from atlas_edge.embed.watch.owners import Owners
from atlas_edge.embed.watch.quarantine import remove_report, report_of
from atlas_edge.embed.watch.schema import JOURNAL, State, open_journal, path_of
from atlas_edge.errors import InputError
from atlas_edge.system.paths import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of a slide that was named; `refused` where it was left as it is."""

    slide: str
    did: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class _Named:
    """A row of the journal that somebody means.

    Attributes:
        row: Of the journal.
        exactly: By its name; by a pattern otherwise.
        running: A watcher embeds it.
    """

    row: sqlite3.Row
    exactly: bool
    running: bool

    @property
    def path(self) -> Path:
        return path_of(self.row["path"])

    def refused(self, why: str) -> Told:
        return Told(slide=printable(self.path), did=why, refused=True)

    def done(self, did: str) -> Told:
        return Told(slide=printable(self.path), did=did)


def retry(state: Path, names: Sequence[str], *, dry_run: bool = False) -> list[Told]:
    """Queue slides again that were set aside or wait for their next attempt; see `_tell`."""
    return _tell(state, names, _retry, dry_run)


def forget(state: Path, names: Sequence[str], *, dry_run: bool = False) -> list[Told]:
    """Drop slides; what is still in the drop folder is found anew; see `_tell`."""
    return _tell(state, names, _forget, dry_run)


def _tell(
    state: Path, names: Sequence[str], act: Callable[[sqlite3.Connection, _Named], Told | None], dry_run: bool
) -> list[Told]:
    """Do something to slides.

    Args:
        state: Folder of the journal.
        names: File names, paths, paths below the drop folder, or patterns of them.
        act: What; None where a pattern does not mean that slide.
        dry_run: Say what would be done.

    Raises:
        InputError: No journal, one that cannot be written, or a name that it does not know: then nothing is done.
    """
    journal = state / JOURNAL
    if not journal.is_file():
        raise InputError(
            f"{state} holds no {JOURNAL}, expected a watcher's --out", hint="or its --state, if it has one"
        )
    try:
        with closing(open_journal(journal)) as sql:
            sql.execute("BEGIN IMMEDIATE")
            named = _find(sql, names, state)
            told = [(one, item) for one in named if (item := act(sql, one)) is not None]
            sql.execute("ROLLBACK" if dry_run else "COMMIT")
    except sqlite3.Error as error:
        raise InputError(f"{journal} cannot be written: {error}", hint="run it as the watcher's own user") from error
    if not dry_run:
        log = EventLog(state / LOG)
        for one, item in told:
            if not item.refused:
                log.write("told", slide=str(one.path), what=item.did)
                with suppress(OSError):
                    remove_report(report_of(state, path_of(one.row["folder"]), one.path))
    return [item for _, item in told]


def _retry(sql: sqlite3.Connection, one: _Named) -> Told | None:
    row, out = one.row, path_of(one.row["out"])
    has_failed = row["state"] == State.QUARANTINED or (row["state"] != State.DONE and row["error"] is not None)
    if not one.exactly and (one.running or not has_failed):
        return None
    if one.running:
        return one.refused("is being embedded")
    if row["state"] == State.DONE and out.exists():
        return one.refused(f"is embedded; to have that done again, remove {printable(out)} first")
    if row["state"] == State.WAITING:
        return one.refused("waits until the scanner has finished it")
    if not one.path.exists():
        return one.refused("is not there; mount its folder, or forget it")
    sql.execute(
        "UPDATE slides SET state = ?, owner = NULL, attempts = 0, next_try_at = 0, error = NULL WHERE path = ?",
        (State.QUEUED, row["path"]),
    )
    return one.done("is tried again")


def _forget(sql: sqlite3.Connection, one: _Named) -> Told:
    if one.running:
        return one.refused("is being embedded")
    sql.execute("DELETE FROM slides WHERE path = ?", (one.row["path"],))
    stays = "; it is still in the drop folder, where a watcher finds it anew" if one.path.exists() else ""
    return one.done(f"is forgotten{stays}")


def _find(sql: sqlite3.Connection, names: Sequence[str], state: Path) -> list[_Named]:
    rows = sql.execute("SELECT * FROM slides ORDER BY path").fetchall()
    exactly: dict[int, bool] = {}
    for name in names:
        matches = {index: exact for index, row in enumerate(rows) if (exact := _is_named(row, name)) is not None}
        if not matches:
            raise InputError(f"no slide in the journal of {state} matches {name}", hint="the status page names them")
        for index, exact in matches.items():
            exactly[index] = exact or exactly.get(index, False)
    claimed = [rows[index] for index in exactly if rows[index]["state"] == State.RUNNING]
    # A watcher that has ended embeds nothing; one of another machine may be alive for all that is known here.
    running = {row["path"] for row in claimed} - {row["path"] for row in Owners("").orphans(claimed)}
    return [_Named(rows[index], exact, rows[index]["path"] in running) for index, exact in sorted(exactly.items())]


def _is_named(row: sqlite3.Row, name: str) -> bool | None:
    """Whether a slide is named itself (True), by a pattern (False), or not at all (None)."""
    path, folder = path_of(row["path"]), path_of(row["folder"])
    below = path.relative_to(folder).as_posix() if folder in path.parents else path.name
    texts = [path.name, below, str(path)]
    if name in (*texts, *map(printable, texts)) or Path(name).absolute() == path:
        return True
    return False if any(fnmatch(text, name) for text in texts) else None
