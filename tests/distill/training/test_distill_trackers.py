"""Runs that are logged elsewhere, too, and presets of a run's options."""

import json
import sys
import tomllib
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
from tiny_runs import losses_of, tiny_config

from atlas_edge.cli import run_app
from atlas_edge.distill import cli
from atlas_edge.distill.training import loop
from atlas_edge.distill.training.config import PresetName
from atlas_edge.distill.training.run import distill, run_folder
from atlas_edge.errors import InputError


class _Stopped(Exception):
    pass


class Mlflow(ModuleType):
    """Runs by id, as MLflow keeps them: a run that goes on is started with its id and without a name."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        self.runs: dict[str, dict[str, Any]] = {}
        self.fails_at: int | None = None
        self._active: dict[str, Any] | None = None

    def start_run(self, run_id: str | None, run_name: str | None) -> Any:
        assert (run_id is None) != (run_name is None)
        found = run_id or f"run{len(self.runs)}"
        if run_id is None:
            self.runs[found] = {"name": run_name, "params": {}, "metrics": {}}
        self._active = self.runs[found]
        return SimpleNamespace(info=SimpleNamespace(run_id=found))

    def log_params(self, params: dict[str, Any]) -> None:
        assert self._active is not None and all(len(str(value)) <= 6000 for value in params.values())
        self._active["params"] |= params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert self._active is not None and all(isinstance(value, float) for value in metrics.values())
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("the server is gone")
        self._active["metrics"][step] = metrics

    def end_run(self) -> None:
        assert self._active is not None
        self._active = None


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)
    module = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_a_run_that_goes_on_is_the_same_one_elsewhere(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, mlflow: Mlflow
) -> None:
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "s", steps=7, log_to="mlflow")
    config = replace(config, tiles=config.tiles * 1000, views=1)

    def stop(state: Any) -> None:
        if state.step == 6:
            raise _Stopped

    with pytest.raises(_Stopped):
        distill(config, progress=stop)
    distill(config)
    (run,) = mlflow.runs.values()
    assert run["name"] == "s" and run["params"]["steps"] == "7"
    # Neither paths nor tile sets, which patients give their names.
    assert str(tmp_path.parent) not in json.dumps(run["params"]) and tile_folder.name not in str(run["params"]["tiles"])
    assert {step: figures["loss"] for step, figures in run["metrics"].items()} == losses_of(config.out)
    assert not run_folder(config.out).exists()


def test_a_server_that_goes_ends_no_run(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, mlflow: Mlflow,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    mlflow.fails_at = 3
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "s", steps=5, log_to="mlflow")
    distill(config)
    (run,) = mlflow.runs.values()
    assert sorted(run["metrics"]) == [1, 2] and sorted(losses_of(config.out)) == [1, 2, 3, 4, 5]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "MLflow is left out from here on: the server is gone (metrics.csv holds all)"


def test_a_server_that_is_not_there_is_told_before_the_first_step(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, mlflow: Mlflow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(**_: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(mlflow, "start_run", refuse)
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "s", steps=5, log_to="mlflow")
    with pytest.raises(InputError, match="mlflow opens no run: refused"):
        distill(config)
    assert losses_of(config.out) == {}


def test_a_tracker_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    if "wandb" in sys.modules:
        pytest.skip("wandb is there")
    command = ["atlas2-demo", "--tiles", "synthetic:8", "--out", "s", "--log-to", "wandb", "--dry-run"]
    assert run_app(cli.app, command) == 4
    assert "pip install 'atlas-edge[wandb]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", get_args(PresetName))
def test_a_preset_sets_what_nobody_gave(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tomllib.loads(cli.PRESETS.read_text(encoding="utf-8"))[name]
    command = ["atlas2-demo", "--tiles", "synthetic:8", "--out", "s", "--preset", name, "--batch", "3", "--dry-run"]
    assert run_app(cli.app, command) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {option.replace("-", "_"): value for option, value in preset.items()} | {"batch": 3}
    assert {option: found[option] for option in expected} == expected and len(expected) >= 7


def test_every_preset_of_the_file_can_be_named() -> None:
    assert tuple(tomllib.loads(cli.PRESETS.read_text(encoding="utf-8"))) == get_args(PresetName)
