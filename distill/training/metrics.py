"""What a run writes while it goes: `metrics.csv`, and what trackers keep of it."""

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atlas_edge.distill.training.trackers import Tracker

_LOGGER = logging.getLogger("atlas_edge")

FIELDS = (
    "step",
    "loss",
    "cls_loss",
    "patch_loss",
    "lr",
    "gradient_norm",
    "images_per_s",
    "waiting_share",
    "held_out_cosine",
    "held_out_knn",
    "held_out_probe",
    "held_out_robustness",
)


class MetricsLog:
    """Rows of one run; rows of steps that a killed run had done past its last checkpoint are dropped first.

    Args:
        folder: Of the run.
        step: Steps that are done.
        trackers: Who takes the figures, too; closed with the log.
    """

    def __init__(self, folder: Path, *, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = folder / "metrics.csv"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        self._file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, FIELDS)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._trackers = list(trackers)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._writer.writerow(row)
        self._file.flush()
        figures = {name: value for name, value in row.items() if name != "step" and value is not None}
        for tracker in tuple(self._trackers):
            self._unless_it_fails(tracker, lambda to: to.log(figures, row["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        for tracker in tuple(self._trackers):
            self._unless_it_fails(tracker, lambda to: to.close())

    def _unless_it_fails(self, tracker: Tracker, do: Callable[[Tracker], None]) -> None:
        try:
            do(tracker)
        except Exception as error:  # a server that is gone for an hour must not end a run of days
            self._trackers.remove(tracker)
            _LOGGER.warning("%s is left out from here on: %s (metrics.csv holds all)", tracker.name, error)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.csv` with numbers, None for what was not measured; a torn last line is left out."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if any(row.get(name) is None for name in FIELDS):
                continue
            rows.append(
                {name: (float(row[name]) if row[name] else None) for name in FIELDS} | {"step": int(row["step"])}
            )
    return rows
