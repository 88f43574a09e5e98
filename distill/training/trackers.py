"""Where the figures of a run go beside `metrics.csv`: TensorBoard where it is installed, MLflow or wandb on request."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from atlas_edge.distill.training.config import TrackerName
from atlas_edge.errors import InputError

RUN_IDS = ("mlflow-run", "wandb-run")
"""Files of the run's folder that say which run it is there."""

# MLflow refuses longer ones; a thousand slides make a long list.
_LONGEST_VALUE = 500


class Tracker(Protocol):
    """Takes figures; a further one is a class with these two methods and a line in `_ASKED_FOR`.

    Attributes:
        name: As users know it.
    """

    name: str

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep the figures of a step, by name."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


def open_trackers(
    folder: Path, *, name: str, step: int, asked: TrackerName | None, options: Mapping[str, Any]
) -> tuple[Tracker, ...]:
    """Trackers of a run.

    Args:
        folder: Of the run.
        name: Of the student.
        step: Steps that are done; a run that goes on is the same one there.
        asked: What `--log-to` names.
        options: Of the run, without names of patients: they are handed on.

    Raises:
        InputError: The library does not open a run, or is not installed.
    """
    found: list[Tracker] = []
    if importlib.util.find_spec("tensorboard") is not None:
        found.append(_TensorBoard(folder, step))
    if asked is None:
        return tuple(found)
    try:
        found.append(_ASKED_FOR[asked](folder, name, options))
    except Exception as error:  # servers that cannot be reached, keys that are not there
        raise InputError(
            f"{asked} opens no run: {' '.join(str(error).split())}", hint="check its settings, or leave out --log-to"
        ) from error
    return tuple(found)


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    """A run at `MLFLOW_TRACKING_URI`, in the experiment `MLFLOW_EXPERIMENT_NAME`."""

    name = "MLflow"

    def __init__(self, folder: Path, name: str, options: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        kept = folder / RUN_IDS[0]
        before = kept.read_text(encoding="utf-8") if kept.is_file() else None
        run = mlflow.start_run(run_id=before, run_name=None if before else name)
        if before is None:
            mlflow.log_params({option: str(value)[:_LONGEST_VALUE] for option, value in options.items()})
            kept.write_text(run.info.run_id, encoding="utf-8")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    """A run of `WANDB_PROJECT`; `WANDB_MODE=offline` keeps it on this machine."""

    name = "wandb"

    def __init__(self, folder: Path, name: str, options: Mapping[str, Any]) -> None:
        import wandb

        kept = folder / RUN_IDS[1]
        before = kept.read_text(encoding="utf-8") if kept.is_file() else None
        self._run = wandb.init(name=name, config=dict(options), id=before, resume="allow")
        kept.write_text(self._run.id, encoding="utf-8")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


_ASKED_FOR: dict[TrackerName, Any] = {"mlflow": _Mlflow, "wandb": _Wandb}
