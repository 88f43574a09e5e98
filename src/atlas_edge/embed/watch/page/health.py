"""For what looks after machines: `/healthz`, and `/metrics` as Prometheus reads them. Neither holds a slide's name."""

import time
from typing import Any

from atlas_edge import __version__
from atlas_edge.embed.watch.status import Status

_Family = tuple[str, str, str, list[tuple[dict[str, str], float]]]

_NO_SIGN_S = 900.0
"""The slowest encoders embed a batch within minutes, and slides on slow shares are opened within them."""


def health(status: Status) -> dict[str, Any]:
    """Whether the watcher does its work (`healthy`), what keeps it from that (`problem`), and figures.

    It does not while it waits for a folder, room on the disk or an encoder, while its journal cannot be read, when the
    folder has not been looked at for long, and when it has neither embedded nor looked for work within a quarter of an
    hour. The last error is given by the number of its slide's page.
    """
    live = status.live
    wrong = [f"waits for: {kind}" for kind in sorted(live.waits_for)]
    if not status.counts:
        wrong.append("the journal cannot be read")
    if live.look_age_s > live.look_due_s:
        wrong.append("the folder has not been looked at for long")
    if live.sign_age_s > _NO_SIGN_S:
        wrong.append("nothing has been embedded or looked for for long")
    return {
        "healthy": not wrong,
        "problem": "; ".join(wrong),
        "look_age_s": round(live.look_age_s, 1),
        "sign_age_s": round(live.sign_age_s, 1),
        "slides": status.counts,
        "slides_left": status.slides_left,
        "queue_end_s": status.queue_end_s,
        "keeps_up": status.keeps_up,
        "disk_free_bytes": live.free_bytes,
        "last_error": next(map(_error, status.errors), None),
    }


def metrics(status: Status) -> str:
    """The text format of Prometheus, version 0.0.4: prometheus.io/docs/instrumenting/exposition_formats."""
    live = status.live
    about = {"version": __version__, "runs_on": live.about.get("runs on", ""), "tiles": live.about.get("tiles", "")}
    free, end = live.free_bytes, status.queue_end_s
    waits = [({"kind": kind}, seconds) for kind, seconds in sorted(live.waits_for.items())]
    families: list[_Family] = [
        ("info", "gauge", "What runs.", [(about, 1)]),
        ("healthy", "gauge", "Whether /healthz answers with 200.", _one(health(status)["healthy"])),
        ("waits_seconds", "gauge", "For how long the watcher has waited for something.", waits),
        ("tiles_total", "counter", "Tiles that this process has embedded.", _one(live.tiles)),
        ("tiles_per_second", "gauge", "Tiles a second within the last minute.", _one(live.tiles_per_s)),
        ("scan_seconds", "gauge", "How long the last look at the folder took.", _one(live.look_s)),
        ("scan_age_seconds", "gauge", "Since the folder was last looked at.", _one(live.look_age_s)),
        ("disk_free_bytes", "gauge", "Left on the disk of the embeddings.", _one(free)),
    ]
    if status.counts:
        counts = [({"state": state}, float(count)) for state, count in status.counts.items()]
        families += [
            ("slides", "gauge", "Slides by state.", counts),
            ("slides_arrived", "gauge", "Slides that came within the last hour.", _one(status.arrived)),
            ("slides_finished", "gauge", "Embedded or quarantined within the last hour.", _one(status.finished)),
            ("slides_left", "gauge", "Slides that are still to be embedded.", _one(status.slides_left)),
            ("queue_end_seconds", "gauge", "Until nothing is left, at the pace of the latest slides.", _one(end)),
        ]
    return "".join(_lines(*family) for family in families if family[3])


def _error(row: dict[str, Any]) -> dict[str, Any]:
    when = row["finished_at"]
    age = None if when is None else round(max(time.time() - when, 0.0), 1)
    return {"slide": row["number"], "state": row["state"], "attempts": row["attempts"], "age_s": age}


def _one(value: float | None) -> list[tuple[dict[str, str], float]]:
    return [] if value is None else [({}, value)]


def _lines(name: str, kind: str, what: str, samples: list[tuple[dict[str, str], float]]) -> str:
    name = f"atlas_embed_{name}"
    text = f"# HELP {name} {what}\n# TYPE {name} {kind}\n"
    for labels, figure in samples:
        inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
        text += f"{name}{{{inside}}} {float(figure)!r}\n" if inside else f"{name} {float(figure)!r}\n"
    return text


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
