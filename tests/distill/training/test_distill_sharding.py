"""Two processes over gloo that each hold half of the training state, against one process that holds it all."""

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import losses_of, run_two, tiny_config

from atlas_edge.distill.training import loop
from atlas_edge.distill.training.checkpoint import NAME
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.distill.training.run import distill, run_folder
from atlas_edge.distill.training.sharding import sharding_wanted
from atlas_edge.errors import UsageError

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

Configure = Callable[[Path], TrainConfig]


@pytest.fixture(scope="module")
def configure(tiny_model: Path, tile_folder: Path, held_out_folder: Path, tiny_student: Path) -> Configure:
    def make(out: Path) -> TrainConfig:
        return tiny_config(
            tiny_model, tile_folder, tiny_student, out, held_out=str(held_out_folder), evaluate_every=4, clip=0.1
        )

    return make


@pytest.fixture(scope="module")
def alone(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of one process."""
    out = tmp_path_factory.mktemp("alone") / "student"
    with _every_step():
        distill(configure(out))
    return out


@pytest.fixture(scope="module")
def stopped(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process was stopped at step 8, after the checkpoint of step 5."""
    out = tmp_path_factory.mktemp("stopped") / "student"

    class Stopped(Exception):
        pass

    def stop(state: loop.Progress) -> None:
        if state.step == 8:
            raise Stopped

    with _every_step(), pytest.raises(Stopped):
        distill(configure(out), progress=stop)
    return out


@pytest.fixture(scope="module")
def killed(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the main one of two sharded processes was killed at step 8, after the checkpoint of step 5."""
    out = tmp_path_factory.mktemp("killed") / "student"
    main, other = run_two(configure(out), TINY_FAULT="kill", **SHARDED)
    assert main.status == -signal.SIGKILL, main.complaint
    assert other.status != 0
    return out


@pytest.fixture(scope="module")
def sharded(configure: Configure, killed: Path, stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two sharded processes made of a run from the start (`whole`), and of the runs `killed` and, each step in two
    parts, `stopped`.

    One of them sees other features before the first step, as on a machine that rounds differently.
    """
    folder = tmp_path_factory.mktemp("sharded")
    _copy_run(killed, folder / "killed")
    _copy_run(stopped, folder / "stopped")
    configs = [configure(folder / name) for name in ("whole", "killed", "stopped")]
    configs[2] = replace(configs[2], accumulate=2)
    for process in run_two(*configs, TINY_HELD=str(folder), TINY_FAULT="differs", **SHARDED):
        assert process.status == 0, process.complaint
    return folder


def test_two_sharded_processes_equal_one(alone: Path, sharded: Path, tiny_student: Path) -> None:
    _assert_same_run(sharded / "whole", alone, tiny_student)
    ours, theirs = (read_metrics(out) for out in (sharded / "whole", alone))
    assert [row["gradient_norm"] for row in ours] == pytest.approx([row["gradient_norm"] for row in theirs], rel=1e-3)
    assert max(row["gradient_norm"] for row in theirs) > 0.1  # so that clipping is at work
    for column in ("held_out_cosine", "held_out_knn", "held_out_probe"):
        looks = [[row[column] for row in rows if row["step"] in (4, 8, 12)] for rows in (ours, theirs)]
        assert looks[0] == pytest.approx(looks[1], rel=1e-3)


def test_each_process_holds_half_of_the_state(sharded: Path) -> None:
    first, second = (json.loads((sharded / f"{rank}.json").read_text()) for rank in range(2))
    assert first.keys() == {"weights", "gradients", "moments", "average"}
    for kind, (held, total) in first.items():
        assert held + second[kind][0] == total > 0
        assert 0.4 * total < held < 0.6 * total


def test_a_sharded_checkpoint_has_the_form_of_any_other(killed: Path, stopped: Path) -> None:
    ours, theirs = (load_file(run_folder(out) / NAME) for out in (killed, stopped))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_a_killed_sharded_run_goes_on_sharded_to_the_same_losses(sharded: Path) -> None:
    assert _resumed_from(sharded / "killed") == 5
    assert losses_of(sharded / "killed") == losses_of(sharded / "whole")
    ours, theirs = (load_file(sharded / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_sharded_run_goes_on_in_one_process(
    configure: Configure, killed: Path, alone: Path, tiny_student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    _copy_run(killed, out)
    with _every_step():
        assert distill(configure(out)).resumed_from == 5
    _assert_same_run(out, alone, tiny_student)


def test_a_stopped_run_goes_on_sharded_and_in_parts(sharded: Path, alone: Path, tiny_student: Path) -> None:
    assert _resumed_from(sharded / "stopped") == 5
    _assert_same_run(sharded / "stopped", alone, tiny_student)


def test_a_loss_that_is_not_finite_in_one_process_stops_both(configure: Configure, tmp_path: Path) -> None:
    for process in run_two(configure(tmp_path / "student"), TINY_FAULT="nan", **SHARDED):
        assert process.status == 1
        assert "the loss became nan at step 3" in process.complaint


def test_memory_that_runs_out_in_one_process_is_explained_there_and_ends_both(
    configure: Configure, tmp_path: Path
) -> None:
    main, other = run_two(configure(tmp_path / "student"), TINY_FAULT="memory", **SHARDED)
    assert other.status == 1 and "memory ran out at step 3" in other.complaint and "--accumulate 2" in other.complaint
    assert main.status != 0


def test_the_first_fsdp_is_refused_and_one_process_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not sharding_wanted()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--fsdp_version 2"):
        sharding_wanted()


def _every_step() -> AbstractContextManager[object]:
    return mock.patch.object(loop, "_LOG_EVERY", 1)


def _copy_run(of: Path, to: Path) -> None:
    """Copy an unfinished run; both are folders of students to be."""
    shutil.copytree(run_folder(of), run_folder(to))


def _resumed_from(out: Path) -> int:
    return int(json.loads((out / "report.json").read_text())["resumed_from"])


def _assert_same_run(out: Path, other: Path, first: Path) -> None:
    """Losses agree to a thousandth, weights to a twentieth of how far training moved them from the first ones."""
    assert losses_of(out) == pytest.approx(losses_of(other), rel=1e-3)
    ours, theirs, before = (load_file(folder / "model.safetensors") for folder in (out, other, first))
    distance = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    moved = max(float((theirs[name] - before[name]).abs().max()) for name in theirs)
    assert distance < 0.05 * moved
