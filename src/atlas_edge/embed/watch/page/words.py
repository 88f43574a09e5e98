"""Figures as people read them."""

import html
from pathlib import Path
from typing import Any

from atlas_edge.system.paths import printable


def ago(when: float | None, now: float) -> str:
    """How long something is past."""
    if when is None:
        return ""
    seconds = max(now - when, 0)
    return "just now" if seconds < 30 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """In minutes, hours or days."""
    minutes = max(seconds / 60, 1)
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"


def size(count: int | None) -> str:
    """In GB or TB."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:.3g} GB" if count < 1e12 else f"{count / 1e12:.3g} TB"


def tiles(row: dict[str, Any]) -> str:
    """How far a slide is, as HTML."""
    if not row["tiles"]:
        return ""
    if row["state"] == "done":
        return f"{row['tiles']:,}"
    bar = f"<progress max='{row['tiles']}' value='{row['tiles_done']}'></progress> " * (row["state"] == "running")
    return f"{bar}{row['tiles_done']:,} of {row['tiles']:,}"


def link(row: dict[str, Any]) -> str:
    """A slide's file name, leading to its page, as HTML."""
    return f"<a href='/slide/{row['number']}'>{html.escape(printable(Path(row['path']).name))}</a>"
