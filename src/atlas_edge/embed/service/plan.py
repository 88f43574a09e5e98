"""What a service runs, and which folders that writes to."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from atlas_edge.cli import CONFIG, apply_file
from atlas_edge.embed.config import WatchOptions
from atlas_edge.errors import UsageError
from atlas_edge.options import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """What a service runs.

    Attributes:
        name: Of the service.
        arguments: The command: this interpreter, and `atlas-embed watch --config FILE`.
        reads: Paths that it reads, the drop folder first.
        writes: Folders that it writes to.
        talks: It runs a command of the lab's own, which may have to reach other machines.
    """

    name: str
    arguments: list[str]
    reads: list[str]
    writes: list[str]
    talks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFile:
    """A file for a service manager.

    Attributes:
        name: File name.
        data: Content.
        steps: Commands that install it; the first word that is the file's name stands for its path.
        quoted: Puts a path into those commands.
    """

    name: str
    data: bytes
    steps: list[str]
    quoted: Callable[[Path], str]


def plan_of(settings: Path, *, name: str, windows: bool) -> ServicePlan:
    """Read a file of options as `atlas-embed watch` would.

    Raises:
        UsageError: It lacks an option that has to be there, holds one that is none, or a path that is not whole.
    """
    import cyclopts

    from atlas_edge.embed.watch.command import watch

    settings = settings.resolve()
    # Without the environment and the working folder of whoever asks: the service has others.
    app = cyclopts.App(name="atlas-embed", config=apply_file)
    app.command(watch)
    _, bound, _ = app.parse_args(["watch", CONFIG, str(settings)], exit_on_error=False, print_error=False)
    given = bound.arguments
    options, running = given.get("options", WatchOptions()), given.get("running", Running())
    bundle = [given["bundle"]] if Path(given["bundle"]).exists() else []
    writes = [given["out"], given.get("state"), running.cache]
    plan = ServicePlan(
        name=name,
        arguments=[sys.executable, "-P", "-m", "atlas_edge.embed", "watch", CONFIG, str(settings)],
        reads=_whole([*given["folders"], *bundle], settings, windows),
        writes=_whole([path for path in writes if path is not None], settings, windows),
        talks=bool(options.on_quarantine),
    )
    for text in (*plan.arguments, *plan.reads, *plan.writes):
        if not text.isprintable():
            raise UsageError(f"{text!r} holds characters that no service manager reads", hint="rename it")
    return plan


def _whole(paths: list[Any], settings: Path, windows: bool) -> list[str]:
    kind = PureWindowsPath if windows else PurePosixPath
    for path in paths:
        if not kind(str(path)).is_absolute():
            raise UsageError(
                f"{settings}: {path} is no whole path, and a service works in no folder of yours",
                hint="write it in full",
            )
    return list(dict.fromkeys(str(path) for path in paths))
