"""`atlas-embed watch FOLDER`, registered by `embed.cli`."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from atlas_edge.cli import console, print_json, set_verbosity
from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, Quiet, Verbose


def watch(
    folder: Path,
    /,
    *,
    bundle: str,
    out: Path,
    form: str = "h5",
    settle_seconds: float = 30.0,
    marker_only: Flag = False,
    poll_seconds: float = 5.0,
    attempts: int = 3,
    retry_seconds: float = 60.0,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    min_tissue: float = 0.1,
    max_unreadable: float = 0.01,
    threads: int = 1,
    streams: int | None = None,
    batch: int = 64,
    page: bool = True,
    port: int = 8777,
    once: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embed every slide that a scanner puts into a folder, once.

    Several watchers may share a folder and --out, one a GPU (`CUDA_VISIBLE_DEVICES`), on one machine. Stopped or
    killed, it goes on where it was when it is started again. Example:

        atlas-embed watch /scans --bundle atlas2-s-openvino-int8 --out /embeddings

    Args:
        folder: Drop folder, with its subfolders. Nothing is written there.
        bundle: Bundle folder.
        out: Folder for the embeddings, the journal (SQLite), the log (JSON lines) and the quarantine's reports.
        form: Form of the embeddings: h5, zarr or parquet.
        settle_seconds: A slide is finished when size and time have not changed for so long, or NAME.done is there.
        marker_only: A slide is finished only when NAME.done is there.
        poll_seconds: Pause between looks at the folder.
        attempts: After so many failures a slide is quarantined: left alone until it changes.
        retry_seconds: Pause before the second attempt; it doubles each time.
        mpp: µm per pixel of slides that do not say it.
        tile_mpp: µm per pixel of tiles; the encoder's own by default.
        min_tissue: Least share of tissue in a tile, 0-1.
        max_unreadable: Largest share of unreadable tiles that a slide may have, 0-1.
        threads: Decode threads.
        streams: Calls side by side in OpenVINO; chosen by the cores when left out.
        batch: Tiles a batch.
        page: Serve a status page on 127.0.0.1; --no-page does not.
        port: Port of the page; another free one where it is taken.
        once: End when every slide is embedded or quarantined.
        dry_run: List the slides that are there, and do nothing.
        json: Print the slides and their states at the end as JSON on stdout.
        quiet: Say nothing but errors.
        verbose: Say more.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    from atlas_edge.embed.cli import make_config
    from atlas_edge.embed.output import check_form
    from atlas_edge.embed.watch import JOURNAL, Watcher, WatchOptions
    from atlas_edge.embed.watch_journal import WatchJournal
    from atlas_edge.embed.workers import open_encoder

    if attempts < 1 or min(settle_seconds, poll_seconds, retry_seconds) < 0 or not 0 <= port < 2**16:
        raise UsageError("--attempts, a pause or --port is out of range", hint="see atlas-embed watch --help")
    check_form(out / f"x.{form}")
    config = make_config(
        mpp=mpp, tile_mpp=tile_mpp, min_tissue=min_tissue, max_unreadable=max_unreadable, threads=threads, batch=batch
    )
    options = WatchOptions(
        settle_s=settle_seconds,
        marker_only=marker_only,
        poll_s=poll_seconds,
        most_attempts=attempts,
        retry_s=retry_seconds,
        form=form,
        once=once,
    )
    if dry_run:
        _list(folder, out, json=json, quiet=quiet)
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, expected the scanner's drop folder")

    def status() -> Any:
        journal = WatchJournal(out / JOURNAL)
        try:
            return journal.status(time.time())
        finally:
            journal.close()

    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        encoder, sha256 = open_encoder(bundle, batch=batch, streams=streams)
        stack.callback(encoder.close)
        if encoder.spec.notice:
            console(quiet=quiet).print(f"WARNING: {encoder.spec.notice}")
        watcher = Watcher(folder, out, encoder, config, options, bundle_sha256=sha256)
        address = ""
        if page:
            from atlas_edge.embed.status_page import status_page

            address = stack.enter_context(status_page(status, port))
            watcher.log.write("page", address=address)
        stack.enter_context(_live_table(status, address, quiet=quiet))
        watcher.run()
    if json:
        print_json({"counts": status().counts, "slides": status().rows})


def _list(folder: Path, out: Path, *, json: bool, quiet: bool) -> None:
    from atlas_edge.embed.watch import find_slides

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, expected the scanner's drop folder")
    found = [str(path) for path in find_slides(folder.resolve(), out.resolve())]
    for path in found:
        console(quiet=quiet).print(path, markup=False, soft_wrap=True)
    if json:
        print_json({"slides": found})


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A service manager's SIGTERM gives the slide back, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _live_table(status: Any, address: str, *, quiet: bool) -> Iterator[None]:
    screen = console(quiet=quiet)
    if not screen.is_terminal:
        if address:
            screen.print(f"status page: {address}")
        yield
        return
    from rich.live import Live

    ended = threading.Event()
    with Live(console=screen, auto_refresh=False) as live:

        def refresh() -> None:
            while not ended.is_set():
                live.update(_table(status(), address), refresh=True)
                ended.wait(1.0)

        thread = threading.Thread(target=refresh, name="table", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _table(status: Any, address: str) -> Any:
    from rich.table import Table

    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items())
    table = Table(title=f"{counts}; {status.slides_per_hour} slides in the last hour", caption=address or None)
    for column in ("slide", "state", "tiles", "last error"):
        table.add_column(column)
    for row in status.rows[:12]:
        tiles = f"{row['tiles_done']}/{row['tiles']}" if row["tiles"] else ""
        # The path only repeats the first column.
        error = (row["error"] or "").partition("\n")[0].replace(f"{row['path']} ", "", 1)
        table.add_row(Path(row["path"]).name, row["state"], tiles, error)
    return table
