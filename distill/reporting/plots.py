"""The loss curve of a run."""

from pathlib import Path
from typing import Any


def loss_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw losses (left) and held-out cosine (right) over steps into a PNG; nothing where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left = figure.subplots()
    for name, label in (("cls_loss", "CLS"), ("patch_loss", "patch tokens")):
        points = [(row["step"], row[name]) for row in rows if row[name] is not None]
        if points:
            left.plot(*zip(*points, strict=True), label=label, linewidth=1)
    left.set(xlabel="step", ylabel="loss")
    left.legend(loc="upper left")
    points = [(row["step"], row["held_out_cosine"]) for row in rows if row["held_out_cosine"] is not None]
    if points:
        right = left.twinx()
        right.plot(*zip(*points, strict=True), color="black", marker="o", markersize=3)
        right.set_ylabel("held-out cosine to the teacher")
    figure.savefig(path, dpi=120)
