"""A page a slide: its picture, its state, what its output says, and what became of it."""

import html
from collections.abc import Iterable
from typing import Any

from atlas_edge.embed.watch.page.words import ago, tiles
from atlas_edge.embed.watch.view import SlideView
from atlas_edge.system.paths import printable

_ALT = "The slide with its tiles, and the embeddings of each tile as a colour"
_SHOWN_ALREADY = ("time", "event", "slide", "traceback")


def render_slide(view: SlideView, now: float) -> str:
    """What the page shows, as HTML; names of files, attributes and errors are escaped."""
    row = view.row
    when = ago(row["finished_at"] or row["started_at"], now)
    state = ", ".join(filter(None, (row["state"], f"attempt {row['attempts']}" * bool(row["attempts"]), when)))
    error = f"<p class='error' id='error'>{_text(row['error'])}</p>" if row["error"] else ""
    picture = f"<img src='/slide/{row['number']}/overview.jpg' alt='{_ALT}'>" if view.overview else ""
    count = f"<p id='tiles'>{tiles(row)} tiles</p>" if row["tiles"] else ""
    history = [(f"{str(event.get('time', ''))[:19].replace('T', ' ')} UTC", _told(event)) for event in view.events]
    return (
        f"<h2>{_text(row['path'])}</h2><p id='state' class='{row['state']}'>{state}</p>"
        f"{count}{error}{picture}"
        f"<h2>History</h2>{_table(history) or '<p>none</p>'}"
        f"<h2>Attributes</h2>{_table(view.attributes.items()) or '<p>no embeddings yet</p>'}"
    )


def _told(event: dict[str, Any]) -> str:
    said = {name: value for name, value in event.items() if name not in _SHOWN_ALREADY and value not in ({}, "")}
    details = ", ".join(f"{name} {value}" for name, value in said.items())
    return ": ".join(filter(None, (str(event.get("event", "")), details)))


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    inside = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table class='facts'>{inside}</table>" if inside else ""


def _text(value: Any) -> str:
    return html.escape(printable(str(value)))
