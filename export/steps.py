"""Numbered steps with progress, on stderr: animated on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from atlas_edge.system.heap import give_back_freed

Advance = Callable[[int], None]


class Steps:
    """Announces each step and how long it took.

    Args:
        console: Where to print; a quiet console prints nothing.
        total: Number of steps.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.seconds: dict[str, float] = {}
        self._number = 0

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """Run one step: `[2/6] calibrate  300 tiles`, then its time."""
        self._number += 1
        head = (f"{self._number}/{self.total} {name}", "bold")
        self.console.print(Text.assemble(head, f"  {detail}" if detail else ""))
        start = time.perf_counter()
        yield
        give_back_freed()
        self.seconds[name] = time.perf_counter() - start
        self.console.print(f"    {self.seconds[name]:.1f} s", style="dim")

    def note(self, text: str) -> None:
        """Print a line below the current step."""
        self.console.print(f"    {text}", markup=False)

    def warn(self, text: str) -> None:
        """Print a line that must not be overlooked."""
        self.console.print(Text.assemble("    ", ("WARNING", "bold yellow"), f" {text}"))

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Advance]:
        """A progress bar on a terminal; nothing elsewhere."""
        columns = (
            TextColumn("    {task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        visible = self.console.is_terminal and not self.console.quiet
        with Progress(*columns, console=self.console, transient=True, disable=not visible) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
