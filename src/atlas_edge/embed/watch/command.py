"""`atlas-embed watch FOLDER`, registered by `embed.cli`."""

import signal
import threading
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
    pen: bool = True,
    max_unreadable: float = 0.01,
    threads: int = 1,
    streams: int | None = None,
    batch: int = 64,
    re_embed: Flag = False,
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
        settle_seconds: A slide is finished when none of its files has changed for so long, or NAME.done is there.
        marker_only: A slide is finished only when NAME.done is there.
        poll_seconds: Pause between looks at the folder.
        attempts: After so many failures a slide is quarantined: left alone until it changes.
        retry_seconds: Pause before the second attempt; it doubles each time.
        mpp: µm per pixel of slides that do not say it.
        tile_mpp: µm per pixel of tiles; the encoder's own by default.
        min_tissue: Least share of tissue in a tile, 0-1.
        pen: Leave out strokes of pen and black borders; --no-pen takes them for tissue.
        max_unreadable: Largest share of unreadable tiles that a slide may have, 0-1.
        threads: Decode threads.
        streams: Calls side by side in OpenVINO; chosen by the cores when left out.
        batch: Tiles a batch.
        re_embed: Embed again what another bundle, scale or tissue limit embedded; refused when left out.
        page: Serve a status page on 127.0.0.1; --no-page does not.
        port: Port of the page; another free one where it is taken.
        once: End when every slide is embedded or quarantined; after a minute without folder or room, too.
        dry_run: List the slides that are there, and do nothing.
        json: Print the slides and their states at the end as JSON on stdout.
        quiet: Say nothing but errors.
        verbose: Say more.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    from atlas_edge.embed.cli import make_config
    from atlas_edge.embed.output.files import check_form
    from atlas_edge.embed.watch.watcher import Watcher, WatchOptions
    from atlas_edge.embed.workers import open_encoder

    if attempts < 1 or min(settle_seconds, poll_seconds, retry_seconds) < 0 or not 0 <= port < 2**16:
        raise UsageError("--attempts, a pause or --port is out of range", hint="see atlas-embed watch --help")
    check_form(out / f"x.{form}")
    config = make_config(
        mpp=mpp,
        tile_mpp=tile_mpp,
        min_tissue=min_tissue,
        pen=pen,
        max_unreadable=max_unreadable,
        threads=threads,
        batch=batch,
    )
    options = WatchOptions(
        settle_s=settle_seconds,
        marker_only=marker_only,
        poll_s=poll_seconds,
        most_attempts=attempts,
        retry_s=retry_seconds,
        form=form,
        once=once,
        re_embed=re_embed,
    )
    if dry_run:
        _list(folder, out, json=json, quiet=quiet)
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, expected the scanner's drop folder")

    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        encoder, sha256 = open_encoder(bundle, batch=batch, streams=streams)
        stack.callback(encoder.close)
        if encoder.spec.notice:
            console(quiet=quiet).print(f"WARNING: {encoder.spec.notice}")
        watcher = Watcher(folder, out, encoder, config, options, bundle_sha256=sha256)
        address = ""
        if page:
            from atlas_edge.embed.watch.status_page import status_page

            address = stack.enter_context(status_page(watcher.status, port))
            watcher.log.write("page", address=address)
            if port and not address.endswith(f":{port}/"):
                console(quiet=quiet).print(f"port {port} is taken: the status page is at {address}")
        stack.enter_context(_live_table(watcher.status, address, quiet=quiet))
        watcher.run()
    if json:
        status = watcher.status()
        print_json({"counts": status.counts, "slides": status.rows})


def _list(folder: Path, out: Path, *, json: bool, quiet: bool) -> None:
    from atlas_edge.embed.slide_files import find_slides, printable

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, expected the scanner's drop folder")
    found = [str(path) for path in find_slides(folder.resolve(), out.resolve())]
    for path in found:
        console(quiet=quiet).print(printable(path), markup=False, soft_wrap=True)
    if json:
        print_json({"slides": found})


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A service manager's SIGTERM (on Windows Ctrl-Break) gives the slide back, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [number for name in ("SIGTERM", "SIGBREAK") if (number := getattr(signal, name, None)) is not None]
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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

    from atlas_edge.embed.slide_files import printable

    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items())
    caption = "\n".join(filter(None, (status.problem, address)))
    table = Table(title=f"{counts}; {status.slides_per_hour} slides in the last hour", caption=caption or None)
    for column in ("slide", "state", "tiles", "last error"):
        table.add_column(column)
    for row in status.rows[:12]:
        tiles = f"{row['tiles_done']}/{row['tiles']}" if row["tiles"] else ""
        # The path only repeats the first column.
        error = (row["error"] or "").partition("\n")[0].replace(f"{row['path']} ", "", 1)
        name = printable(Path(row["path"]).name)
        table.add_row(name, row["state"], tiles, printable(error))
    return table
