"""What `atlas-distill` shows a person: progress, and tables of figures."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from atlas_edge.distill.judging.compare import Comparison
    from atlas_edge.distill.judging.evaluate import Evaluation
    from atlas_edge.distill.training.loop import Progress


# Seconds between two lines of progress in a log.
_LINE_EVERY_S = 60.0


class Display:
    """Progress with throughput and time left: a bar on a terminal; elsewhere, in a job's log, a line a minute.

    Args:
        screen: Where to.
        total: Steps in all; 0 where they become known later.
    """

    def __init__(self, screen: "Console", total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._screen = screen
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Bars(*columns, console=screen, disable=not screen.is_terminal, transient=True)
        self._task = self._progress.add_task("", total=total or None)
        self._begun: tuple[float, int] | None = None
        self._last_line_s = float("-inf")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._screen.print(f"warning: {text}", style="yellow")

    def show(self, state: "Progress") -> None:
        """A training step was done."""
        cosine = "" if state.held_out_cosine is None else f", held-out cosine {state.held_out_cosine:.3f}"
        text = f"loss {state.loss:.4f}{cosine}, {state.images_per_s:.1f} images/s"
        self._update(state.step, state.steps, text)

    def count(self, done: int, total: int) -> None:
        """Views of a cache were done."""
        self._update(done, total, "views")

    def slides(self, done: int, total: int) -> None:
        """Slides were packed."""
        self._update(done, total, "slides")

    def arms(self, done: int, total: int) -> None:
        """Loops of a timing run were timed."""
        self._update(done, total, "loops")

    def _update(self, done: int, total: int, text: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=text)
        now = time.monotonic()
        # What an earlier process had done says nothing of this one's speed.
        since, before = self._begun = self._begun or (now, done)
        if self._screen.is_terminal or (now - self._last_line_s < _LINE_EVERY_S and done < total):
            return
        self._last_line_s = now
        left = "" if done == before else f", {(now - since) / (done - before) * (total - done) / 60:.0f} min left"
        self._screen.print(f"{done} of {total}: {text}{left}", soft_wrap=True)


def print_evaluation(screen: "Console", result: "Evaluation") -> None:
    """Tables of what a student keeps."""
    from rich.table import Table

    table = Table("probe", "teacher", "teacher at student's width", "student", "kept (95 % interval)")
    for entry in result.retention:
        kept = f"{entry.retained:.1%} ({entry.retained_low:.1%} … {entry.retained_high:.1%})"
        narrowed = "not narrower" if entry.narrowed_score is None else f"{entry.narrowed_score:.3f}"
        table.add_row(entry.method, f"{entry.teacher_score:.3f}", narrowed, f"{entry.student_score:.3f}", kept)
    screen.print(table)
    screen.print(f"{result.fit_tiles} tiles to fit probes on, {result.tiles} to test")
    if result.movements:
        moved = Table("shift", "teacher moves", "student moves", "student − teacher (95 % interval)")
        for item in result.movements:
            extra = item.student_minus_teacher
            moved.add_row(
                item.shift, f"{item.teacher:.3f}", f"{item.student:.3f}",
                f"{extra.estimate:+.3f} ({extra.low:+.3f} … {extra.high:+.3f})",
            )  # fmt: skip
        screen.print(moved)
    if result.robustness is not None:
        rob = result.robustness
        screen.print(
            f"robustness index by {rob.by}, k {rob.student.k}: teacher {rob.teacher.index:.3f}, "
            f"student {rob.student.index:.3f}"
        )
    if result.scanners is not None:
        found = result.scanners
        screen.print(
            f"same region on {len(found.scanners)} scanners: cosine teacher {found.teacher:.3f}, "
            f"student {found.student:.3f}"
        )


def print_comparison(screen: "Console", found: "Sequence[Comparison]") -> None:
    """Table of two recipes' students."""
    from rich.table import Table

    several = any(item.recipe_advantage_pp is not None for item in found)
    of_recipes = ["of the recipes (95 %, over tiles and students)"] if several else []
    table = Table("probe", "students", "against", "advantage, pp (95 %, over tiles)", *of_recipes)
    for item in found:
        scores = [" ".join(f"{score:.3f}" for score in group) for group in (item.scores, item.other_scores)]
        gains = [gain for gain in (item.advantage_pp, item.recipe_advantage_pp) if gain is not None]
        texts = [f"{gain.estimate:+.1f} ({gain.low:+.1f} … {gain.high:+.1f})" for gain in gains]
        table.add_row(item.method, *scores, *texts)
    screen.print(table)
