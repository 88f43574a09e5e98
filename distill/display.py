"""What `atlas-distill` shows a person: progress on a terminal, and tables of figures."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_edge.distill.evaluate import Evaluation
    from atlas_edge.distill.throughput import Throughput
    from atlas_edge.distill.train import Progress


class Display:
    """Progress on a terminal, with throughput and time left; silent elsewhere."""

    def __init__(self, screen: "Console", total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._screen = screen
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Bars(*columns, console=screen, disable=not screen.is_terminal, transient=True)
        self._task = self._progress.add_task("", total=total or None)

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
        self._progress.update(self._task, completed=state.step, description=text)

    def count(self, done: int, total: int) -> None:
        """Views of a cache were done."""
        self._progress.update(self._task, completed=done, total=total, description="views")


def print_evaluation(screen: "Console", result: "Evaluation") -> None:
    """Tables of what a student keeps."""
    from rich.table import Table

    table = Table("probe", "teacher", "student", "kept (95 % interval)")
    for entry in result.retention:
        kept = f"{entry.retained:.1%} ({entry.retained_low:.1%} … {entry.retained_high:.1%})"
        table.add_row(entry.method, f"{entry.teacher_score:.3f}", f"{entry.student_score:.3f}", kept)
    screen.print(table)
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


def print_throughput(screen: "Console", found: "Throughput") -> None:
    """Table of the timed loops."""
    from rich.table import Table

    table = Table("loop", "images/s, median", "waits for data", "distill over it (least … largest)")
    for name, rates in found.images_per_s.items():
        least, middle, largest = found.ratios("distill", name)
        ratio = "" if name == "distill" else f"{middle:.2f}x ({least:.2f} … {largest:.2f})"
        table.add_row(name, f"{sorted(rates)[len(rates) // 2]:.1f}", f"{found.waiting_share[name]:.0%}", ratio)
    screen.print(table)
    screen.print(f"{found.cpu_threads} threads; the loops took turns in one process")
