"""The first page: what runs, figures, the slides with their states, the last errors."""

import html

from atlas_edge.embed.watch.page.words import ago, duration, link, size, tiles
from atlas_edge.embed.watch.status import Status


def render(status: Status, now: float) -> str:
    """What the page shows, as HTML; names of files and errors are escaped."""
    problem = f"<p class='error' id='problem'>{html.escape(status.problem)}</p>" if status.problem else ""
    rows = "".join(
        f"<tr class='{row['state']}'><td>{link(row)}</td><td>{row['state']}</td>"
        f"<td>{tiles(row)}</td><td>{ago(row['finished_at'] or row['started_at'], now)}</td></tr>"
        for row in status.rows
    )
    errors = "".join(
        f"<li class='error'>{link(row)} (attempt {row['attempts']}): {html.escape(row['error'])}</li>"
        for row in status.errors
    )
    return (
        f"{problem}{_about(status)}{_figures(status)}{_keeps_up(status)}"
        f"<table><tr><th>slide</th><th>state</th><th>tiles</th><th>when</th></tr>{rows}</table>"
        f"<h2>Last errors</h2><ul>{errors or '<li>none</li>'}</ul>"
    )


def _about(status: Status) -> str:
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in status.live.about.items())
    return f"<dl class='about'>{rows}</dl>"


def _figures(status: Status) -> str:
    end = status.queue_end_s
    figures = [
        *((name, name, str(count)) for name, count in status.counts.items()),
        ("hourly", "slides in the last hour", str(status.slides_per_hour)),
        ("pace", "tiles/s, last minute", f"{status.live.tiles_per_s:.3g}"),
        ("end", "queue ends", "unknown" if end is None else f"in {duration(end)}" if end else "now"),
        ("disk", "disk left", size(status.live.free_bytes)),
    ]
    shown = "".join(f"<div><dt>{name}</dt><dd id='{key}'>{value}</dd></div>" for key, name, value in figures)
    return f"<dl class='figures'>{shown}</dl>"


def _keeps_up(status: Status) -> str:
    if not status.counts:
        return ""
    hour = f"{status.arrived} slides came in the last hour, {status.finished} were finished"
    if status.keeps_up is None or status.work_arrived_s is None:
        return f"<p id='keeps-up'>{hour}.</p>"
    said = "Keeps up with the scanner" if status.keeps_up else "Does not keep up with the scanner"
    work = f"what came is work for {duration(status.work_arrived_s / max(status.workers, 1))}"
    return f"<p id='keeps-up' class='{'' if status.keeps_up else 'error'}'>{said}: {hour}; {work}.</p>"
