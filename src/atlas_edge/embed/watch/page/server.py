"""Pages that show the queue and each slide, and figures for machines, on this machine only."""

import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from atlas_edge.embed.watch.page.health import health, metrics
from atlas_edge.embed.watch.page.index import render
from atlas_edge.embed.watch.page.slide import render_slide
from atlas_edge.embed.watch.status import Status
from atlas_edge.embed.watch.view import SlideView

LOOPBACK = "127.0.0.1"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>atlas-embed</title>
<meta name="viewport" content="width=device-width">
<style nonce="{nonce}">
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --bad: #b3261e; accent-color: #00704a }}
@media (prefers-color-scheme: dark) {{ :root {{ --bad: #ff8a80; accent-color: #4dd0a1 }} }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }}
a {{ color: inherit; text-decoration-color: #8888 }} h1 a {{ text-decoration: none }}
dt {{ opacity: .7 }} dd {{ margin: 0 }}
.about {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: 1.5rem 0 }}
.figures dd {{ font-size: 1.8rem; font-variant-numeric: tabular-nums; white-space: nowrap }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0 }}
td + td, th {{ white-space: nowrap }} tr + tr td {{ border-top: 1px solid #8884 }} .running {{ font-weight: 600 }}
.facts td:first-child {{ white-space: nowrap; opacity: .7; width: 1% }} .facts td + td {{ white-space: pre-line }}
progress {{ width: 5rem; vertical-align: middle }} img {{ max-width: 100%; height: auto }}
.quarantined, .error {{ color: var(--bad) }} .error {{ white-space: pre-line }}
</style></head><body>
<h1><a href="/">atlas-embed</a></h1>
<main id="status">{content}</main>
<p id="stale" hidden>The watcher does not answer: it has ended, or the machine is busy.</p>
<script nonce="{nonce}">
let shown = "";
setInterval(async () => {{
  const stale = document.getElementById("stale");
  try {{
    const answer = await fetch("{fragment}");
    if (!answer.ok) throw answer.status;
    const text = await answer.text();
    if (text !== shown) document.getElementById("status").innerHTML = shown = text;
    stale.hidden = true;
  }} catch {{ stale.hidden = false; }}
}}, 2000);
</script></body></html>
"""
_TEXT, _HTML, _JSON, _METRICS = "text/plain", "text/html", "application/json", "text/plain; version=0.0.4"
_SLIDE = re.compile(r"/slide/([0-9]{1,18})(|/fragment|/overview\.jpg)")


class Watched(Protocol):
    """What is shown; asked in a thread of each request."""

    def status(self) -> Status:
        """See `View.status`."""
        ...

    def slide(self, number: int) -> SlideView | None:
        """See `View.slide`."""
        ...


@contextmanager
def status_page(watched: Watched, port: int) -> Iterator[str]:
    """Serve pages that renew themselves (`/`, `/slide/NUMBER`), `/status.json`, `/healthz` and `/metrics`.

    On the loopback address. No part of a request becomes a path: slides have numbers, and their pictures lie where the
    journal says.

    Args:
        watched: What is shown.
        port: A free one where this is taken, or 0.

    Yields:
        The first page's address.
    """
    handler = type("Handler", (_Handler,), {"watched": watched})
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
    watched: Watched
    server_version = "atlas-embed"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a request."""
        if not _is_loopback(self.headers.get("Host", "")):
            # A name of a stranger's that leads here (DNS rebinding): its pages must not read ours.
            self._answer(_TEXT, "only by 127.0.0.1, [::1] or localhost\n", HTTPStatus.FORBIDDEN)
        elif slide := _SLIDE.fullmatch(self.path):
            self._answer_slide(int(slide[1]), slide[2])
        elif self.path == "/":
            self._answer_page(render(self.watched.status(), time.time()), "/fragment")
        elif self.path == "/fragment":
            self._answer(_HTML, render(self.watched.status(), time.time()))
        elif self.path == "/status.json":
            self._answer(_JSON, json.dumps(self.watched.status().as_json()))
        elif self.path == "/metrics":
            self._answer(_METRICS, metrics(self.watched.status()))
        elif self.path == "/healthz":
            found = health(self.watched.status())
            code = HTTPStatus.OK if found["healthy"] else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(_JSON, json.dumps(found) + "\n", code)
        else:
            self._answer(_TEXT, "no such page\n", HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a request every two seconds is no news."""

    def _answer_slide(self, number: int, part: str) -> None:
        view = self.watched.slide(number)
        picture = None
        if view is not None and part == "/overview.jpg" and view.overview is not None:
            picture = view.overview.read_bytes()
        if picture is not None:
            self._answer("image/jpeg", picture)
        elif view is None or part == "/overview.jpg":
            self._answer(_TEXT, "no such slide, or no picture of it\n", HTTPStatus.NOT_FOUND)
        elif part:
            self._answer(_HTML, render_slide(view, time.time()))
        else:
            self._answer_page(render_slide(view, time.time()), f"/slide/{number}/fragment")

    def _answer_page(self, content: str, fragment: str) -> None:
        nonce = secrets.token_urlsafe(16)
        self._answer(_HTML, _PAGE.format(nonce=nonce, content=content, fragment=fragment), nonce=nonce)

    def _answer(self, kind: str, body: str | bytes, code: HTTPStatus = HTTPStatus.OK, *, nonce: str = "") -> None:
        data = body if isinstance(body, bytes) else body.encode(errors="replace")
        source, own = (f"'nonce-{nonce}'", "'self'") if nonce else ("'none'", "'none'")
        self.send_response(code)
        self.send_header("Content-Type", kind if isinstance(body, bytes) else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        # Pages of others must not show our pictures.
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {source}; style-src {source}; img-src {own}; connect-src {own}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self.end_headers()
        self.wfile.write(data)


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine, at whatever port: a tunnel from afar ends at another one."""
    return re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", host, re.IGNORECASE) is not None
