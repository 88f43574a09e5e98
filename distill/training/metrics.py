"""What a run writes while it goes: `metrics.csv`, and TensorBoard events where that is installed."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

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
)


class MetricsLog:
    """Rows of one run; rows of steps that a killed run had done past its last checkpoint are dropped first.

    Args:
        folder: Of the run.
        step: Steps that are done.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        self._path = folder / "metrics.csv"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        self._file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, FIELDS)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._board = _tensorboard(folder, step)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._writer.writerow(row)
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


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


def _tensorboard(folder: Path, step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
