"""`atlas-embed watch`, `retry` and `forget`, registered by `embed.cli`."""

import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from atlas_edge.cli import CONFIG, existing_folder, print_json
from atlas_edge.embed.config import EmbedConfig, WatchOptions
from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, Output, Running, Threads

Settings = Annotated[Path | None, Parameter(name=CONFIG)]


def watch(
    folders: Annotated[list[Path], Parameter(name="--folder", negative="")],
    *,
    bundle: str,
    out: Path,
    state: Path | None = None,
    settings: Settings = None,
    options: WatchOptions = WatchOptions(),
    config: EmbedConfig = EmbedConfig(),
    streams: Threads = None,
    running: Running = Running(),
    page: bool = True,
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**16))] = 8777,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Embed every slide that a scanner puts into a folder, once.

    Several watchers may share folders and --out, one a GPU (`CUDA_VISIBLE_DEVICES`), on one machine. Stopped or
    killed, it goes on where it was when it is started again. Example:

        atlas-embed watch /scans --bundle atlas2-s-openvino-int8 --out /embeddings

    Args:
        folders: Drop folders, with their subfolders. Nothing is written there.
        bundle: Bundle folder, or a package of several.
        out: Folder for the embeddings.
        state: Folder for the journal (SQLite), the log (JSON lines), the quarantine's reports and unfinished slides, on
            a disk of this machine; --out when left out.
        settings: TOML file with options by their names, `settle-seconds = 60`; those that are typed win.
        options: How the folder is watched.
        config: How slides are embedded.
        streams: Calls side by side in OpenVINO; chosen by the cores when left out.
        running: On what the bundle runs.
        page: Serve a status page on 127.0.0.1; --no-page does not.
        port: Port of the page; another free one where it is taken.
        dry_run: List the slides that are there, and do nothing.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.embed.output.files import check_form
    from atlas_edge.embed.output.tokens import check_tokens
    from atlas_edge.embed.watch.watcher import Watcher
    from atlas_edge.embed.workers import one_bundle, open_encoder

    check_form(out / f"x.{options.form}")
    if dry_run:
        _list(folders, out, options, screen, json=output.json)
        return
    for folder in folders:
        existing_folder(folder, "the scanner's drop folder")

    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        bundle, running = one_bundle(bundle, running)
        encoder, sha256 = open_encoder(bundle, batch=config.batch, streams=streams, running=running)
        stack.callback(encoder.close)
        if config.tokens:
            check_tokens(out / f"x.{options.form}", encoder.spec)
        if encoder.spec.notice:
            screen.print(f"WARNING: {encoder.spec.notice}")
        watcher = Watcher(
            folders, out, encoder, config, options, bundle=Path(bundle).name, bundle_sha256=sha256, state=state
        )
        address = ""
        if page:
            from atlas_edge.embed.watch.page.server import status_page

            address = stack.enter_context(status_page(watcher.view, port))
            watcher.log.write("page", address=address)
            if port and not address.endswith(f":{port}/"):
                screen.print(f"port {port} is taken: the status page is at {address}")
        stack.enter_context(_live_table(watcher.view.status, address, screen))
        watcher.run()
    if output.json:
        status = watcher.view.status()
        print_json({"counts": status.counts, "slides": status.rows})


def retry(out: Path, names: list[str], /, *, dry_run: Flag = False, output: Output = Output()) -> None:
    """Try slides again that were set aside or wait for their next attempt; a watcher that runs takes them at once.

    Args:
        out: Folder of a watcher's journal: its --out, or its --state.
        names: Slides by file name or path, or patterns such as '*.svs', which mean those that have failed.
        dry_run: Say what would be done.
        output: What is printed.
    """
    from atlas_edge.embed.watch import again

    _say(again.retry(out, names, dry_run=dry_run), output)


def forget(out: Path, names: list[str], /, *, dry_run: Flag = False, output: Output = Output()) -> None:
    """Drop slides from a watcher's journal; what is still in the drop folder is found anew.

    Embeddings stay, and are not made again where they belong to the slide that is found.

    Args:
        out: Folder of a watcher's journal: its --out, or its --state.
        names: Slides by file name or path, or patterns such as '*.svs'.
        dry_run: Say what would be done.
        output: What is printed.
    """
    from atlas_edge.embed.watch import again

    _say(again.forget(out, names, dry_run=dry_run), output)


def _say(told: Sequence[Any], output: Output) -> None:
    screen = output.screen()
    if not told:
        screen.print("none of these slides has failed")
    for item in told:
        screen.print(f"{item.slide} {item.did}", markup=False, soft_wrap=True)
    if output.json:
        print_json({"slides": [dataclasses.asdict(item) for item in told]})
    refused = sum(item.refused for item in told)
    if refused:
        raise UsageError(f"{refused} of {len(told)} slides were left as they are", hint="see the lines above")


def _list(folders: list[Path], out: Path, options: WatchOptions, screen: Any, *, json: bool) -> None:
    from atlas_edge.embed.slide_files import find_slides
    from atlas_edge.embed.watch.scan import is_wanted
    from atlas_edge.system.paths import printable

    found = []
    for folder in (existing_folder(folder, "the scanner's drop folder").resolve() for folder in folders):
        slides = find_slides(folder, out.resolve())
        found += [str(path) for path in slides if is_wanted(path.relative_to(folder), options)]
    for path in found:
        screen.print(printable(path), markup=False, soft_wrap=True)
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
def _live_table(status: Any, address: str, screen: Any) -> Iterator[None]:
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

    from atlas_edge.system.paths import printable

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
