"""What a watcher shows of itself: figures, slides, and what became of each."""

import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas_edge.embed.output.overview import overview_of
from atlas_edge.embed.resume.plan import Plan, attributes_of
from atlas_edge.embed.watch.event_log import EventLog
from atlas_edge.embed.watch.journal import WatchJournal
from atlas_edge.embed.watch.pace import Pace
from atlas_edge.embed.watch.scan import Scanner, Troubles
from atlas_edge.embed.watch.status import Live, Status
from atlas_edge.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideView:
    """One slide.

    Attributes:
        row: What the journal holds of it.
        attributes: What its output says of itself; empty without one.
        events: What the log still holds of it, oldest first.
        overview: Picture of it; None where there is none.
    """

    row: dict[str, Any]
    attributes: dict[str, Any]
    events: list[dict[str, Any]]
    overview: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Reads what a watcher writes; asked by threads of the table and the page.

    Attributes:
        journal: SQLite file.
        out: Folder of embeddings.
        about: What runs; see `Live`.
        log: Events.
        scanners: They look at the folders.
        troubles: What is waited for.
        pace: Of the encoder.
    """

    journal: Path
    out: Path
    about: dict[str, str]
    log: EventLog
    scanners: Sequence[Scanner]
    troubles: Troubles
    pace: Pace

    def status(self) -> Status:
        """How it stands; also while the journal cannot be read."""
        try:
            with closing(WatchJournal(self.journal)) as journal:
                found = replace(journal.status(time.time()), problem=str(self.troubles))
        except (sqlite3.Error, InputError) as error:
            found = Status(counts={}, slides_per_hour=0, rows=[], errors=[], problem=str(error))
        return replace(found, live=self._live())

    def slide(self, number: int) -> SlideView | None:
        """One slide by its number; None where there is none, or the journal cannot be read."""
        try:
            with closing(WatchJournal(self.journal)) as journal:
                row = journal.slide(number)
        except (sqlite3.Error, InputError):
            return None
        if row is None:
            return None
        out = Path(row["out"])
        picture = overview_of(out)
        return SlideView(
            row=row,
            attributes=(attributes_of(out) or {}) if out.exists() else {},
            events=self.log.of_slide(row["path"]),
            overview=picture if picture.is_file() else None,
        )

    def _live(self) -> Live:
        try:
            free = min(shutil.disk_usage(place).free for place in (self.out, self.journal.parent))
        except OSError:
            free = None
        # The one that is late, if one is.
        scanner = max(self.scanners, key=lambda scanner: scanner.age_s - scanner.due_s)
        return Live(
            about=self.about,
            tiles=self.pace.tiles,
            tiles_per_s=self.pace.tiles_per_s,
            look_age_s=scanner.age_s,
            look_s=scanner.look_s,
            look_due_s=scanner.due_s,
            sign_age_s=self.pace.sign_age_s,
            free_bytes=free,
            waits_for=self.troubles.waits_for(),
        )


def about(folders: Sequence[Path], out: Path, bundle: str, runtime: str, plan: Plan) -> dict[str, str]:
    """What runs, in the words of the page."""
    scale = f" at {plan['tile_mpp']:g} µm per pixel" if plan["tile_mpp"] else ""
    return {
        "folder": ", ".join(map(str, folders)),
        "embeddings": str(out),
        "bundle": f"{bundle or plan['encoder']} {plan['bundle_sha256'][:12]}".strip(),
        "runs on": runtime,
        "tiles": f"{plan['tile_px']} px{scale}",
    }
