"""A page that shows the queue, on this machine only."""

import dataclasses
import html
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from atlas_edge.embed.watch.journal import Status

LOOPBACK = "127.0.0.1"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>atlas-embed</title>
<meta name="viewport" content="width=device-width">
<style nonce="{nonce}">
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --bad: #b3261e }}
@media (prefers-color-scheme: dark) {{ :root {{ --bad: #ff8a80 }} }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }}
dl {{ display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: 1.5rem 0 }}
dt {{ opacity: .7 }} dd {{ margin: 0; font-size: 1.8rem; font-variant-numeric: tabular-nums }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ text-align: left; padding: .3rem .8rem .3rem 0 }}
td + td, th {{ white-space: nowrap }} tr + tr td {{ border-top: 1px solid #8884 }} .running {{ font-weight: 600 }}
.quarantined, .error {{ color: var(--bad) }} .error {{ white-space: pre-line }}
</style></head><body>
<h1>atlas-embed</h1>
<main id="status">{content}</main>
<p id="stale" hidden>The watcher does not answer: it has ended, or the machine is busy.</p>
<script nonce="{nonce}">
setInterval(async () => {{
  const stale = document.getElementById("stale");
  try {{
    const answer = await fetch("/fragment");
    document.getElementById("status").innerHTML = await answer.text();
    stale.hidden = true;
  }} catch {{ stale.hidden = false; }}
}}, 2000);
</script></body></html>
"""


@contextmanager
def status_page(status: Callable[[], Status], port: int) -> Iterator[str]:
    """Serve `/` (a page that renews itself) and `/status.json` on the loopback address.

    Args:
        status: Called for each request, in its own thread.
        port: A free one where this is taken, or 0.

    Yields:
        The page's address.
    """
    handler = type("Handler", (_Handler,), {"status": staticmethod(status)})
    try:
        server = _Server((LOOPBACK, port), handler)
    except OSError:
        # A second watcher: its page lives elsewhere.
        server = _Server((LOOPBACK, 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # On Windows this option lets two servers have one port, and one of them gets no request.
    allow_reuse_address = sys.platform != "win32"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a browser that closed its connection is no news."""


class _Handler(BaseHTTPRequestHandler):
    status: Callable[[], Status]
    server_version = "atlas-embed"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a request."""
        if not _is_loopback(self.headers.get("Host", "")):
            # A name of a stranger's that leads here (DNS rebinding): its pages must not read ours.
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "only by 127.0.0.1, [::1] or localhost\n")
        elif self.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = _PAGE.format(nonce=nonce, content=render(type(self).status(), time.time()))
            self._answer(HTTPStatus.OK, "text/html", page, nonce)
        elif self.path == "/fragment":
            self._answer(HTTPStatus.OK, "text/html", render(type(self).status(), time.time()))
        elif self.path == "/status.json":
            self._answer(HTTPStatus.OK, "application/json", json.dumps(dataclasses.asdict(type(self).status())))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "no such page\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a request every two seconds is no news."""

    def _answer(self, code: HTTPStatus, kind: str, text: str, nonce: str = "") -> None:
        data = text.encode(errors="replace")
        source = f"'nonce-{nonce}'" if nonce else "'none'"
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {source}; style-src {source}; connect-src 'self'; frame-ancestors 'none'",
        )
        self.end_headers()
        self.wfile.write(data)


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine, at whatever port: a tunnel from afar ends at another one."""
    return re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", host, re.IGNORECASE) is not None


def render(status: Status, now: float) -> str:
    """What the page shows, as HTML; names of files and errors are escaped."""
    figures = "".join(
        f"<div><dt>{name}</dt><dd id='{name}'>{count}</dd></div>" for name, count in status.counts.items()
    )
    figures += f"<div><dt>slides in the last hour</dt><dd id='hourly'>{status.slides_per_hour}</dd></div>"
    problem = f"<p class='error' id='problem'>{html.escape(status.problem)}</p>" if status.problem else ""
    rows = "".join(
        f"<tr class='{row['state']}'><td>{html.escape(Path(row['path']).name)}</td><td>{row['state']}</td>"
        f"<td>{_tiles(row)}</td><td>{_ago(row['finished_at'] or row['started_at'], now)}</td></tr>"
        for row in status.rows
    )
    errors = "".join(
        f"<li class='error'>{html.escape(Path(row['path']).name)} (attempt {row['attempts']}): "
        f"{html.escape(row['error'])}</li>"
        for row in status.errors
    )
    return (
        f"{problem}<dl>{figures}</dl><table><tr><th>slide</th><th>state</th><th>tiles</th><th>when</th></tr>{rows}</table>"
        f"<h2>Last errors</h2><ul>{errors or '<li>none</li>'}</ul>"
    )


def _tiles(row: dict[str, object]) -> str:
    if not row["tiles"]:
        return ""
    return str(row["tiles"]) if row["state"] == "done" else f"{row['tiles_done']} of {row['tiles']}"


def _ago(when: float | None, now: float) -> str:
    if when is None:
        return ""
    minutes = max(now - when, 0) / 60
    return f"{minutes:.0f} min ago" if minutes < 120 else f"{minutes / 60:.0f} h ago"
