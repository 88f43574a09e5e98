"""Which runs go on, and which are refused because something that shaped them has changed."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_config

from atlas_edge.distill.data import stream as streams
from atlas_edge.distill.data.augment import Augmentation
from atlas_edge.distill.data.cache import write_cache
from atlas_edge.distill.data.order import EvenOrder
from atlas_edge.distill.data.teachers import open_teacher
from atlas_edge.distill.data.tileset import open_training_tiles
from atlas_edge.distill.training import run as whole_run
from atlas_edge.distill.training import sharding
from atlas_edge.distill.training.checkpoint import NAME
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.distill.training.run import distill, run_folder
from atlas_edge.errors import InputError, UsageError


class _Stopped(Exception):
    pass


def _config(**options: Any) -> TrainConfig:
    return tiny_config(Path("teacher"), Path("tiles"), Path("start"), Path("student"), **options)


def _stop(state: Any) -> None:
    if state.step == 10:
        raise _Stopped


@pytest.fixture(scope="module")
def stopped(tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a run reads, and the run, stopped at step 10 after the checkpoint of step 5."""
    folder = tmp_path_factory.mktemp("stopped")
    for name, path in (("teacher", tiny_model), ("tiles", tile_folder), ("start", tiny_student)):
        shutil.copytree(path, folder / name)
    with contextlib.chdir(folder), pytest.raises(_Stopped):
        distill(_config(), progress=_stop)
    return folder


def _add_a_tile() -> None:
    Image.fromarray(np.full((32, 32, 3), 60, dtype=np.uint8)).save(Path("tiles/dark/new.png"))


def _train_again(folder: str) -> None:
    path = Path(folder) / "model.safetensors"
    save_file({name: value * 1.001 for name, value in load_file(path).items()}, path)


def _of_an_earlier_version() -> None:
    path = run_folder(Path("student")) / NAME
    save_file(load_file(path), path, {"step": "5", "config": "{}"})


def _tear() -> None:
    (run_folder(Path("student")) / NAME).write_bytes(b"torn")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (_add_a_tile, {}, "another content of --tiles"),
        (lambda: _train_again("teacher"), {}, "another content of teacher"),
        (lambda: _train_again("start"), {}, "another content of start, the student's first weights"),
        (lambda: None, {"lr": 1e-5}, r"another lr \(0\.003, now 1e-05\)"),
        (_tear, {}, "cannot be read"),
        (_of_an_earlier_version, {}, "of an earlier atlas-edge"),
    ],
)
def test_a_run_goes_on_with_the_same_options_tiles_and_models_only(
    change: Callable[[], None],
    options: dict[str, float],
    said: str,
    stopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    change()
    with pytest.raises((UsageError, InputError), match=said):
        distill(_config(**options))


def test_a_finished_run_removes_only_what_it_wrote(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run = run_folder(Path("student"))
    (run / "notes.txt").write_text("mine")
    distill(_config())
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_run_does_not_go_on_with_a_cache_of_another_teacher(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    cache, teacher = tmp_path / "cache", tmp_path / "teacher"
    shutil.copytree(tiny_model, teacher)

    def compute() -> None:
        tiles, views = open_training_tiles([str(tile_folder)]), Augmentation.named("weak")
        write_cache(cache, open_teacher(str(teacher)), tiles, seeds=(0, 1), augmentation=views, tile_px=32, grid=4)

    compute()
    config = tiny_config(cache, tile_folder, tiny_student, tmp_path / "student")
    with pytest.raises(_Stopped):
        distill(config, progress=_stop)
    _train_again(str(teacher))
    with pytest.raises(UsageError, match="another teacher"):
        compute()
    shutil.rmtree(cache)
    compute()
    with pytest.raises(UsageError, match=r"another content of .*cache"):
        distill(config)


def test_a_run_that_was_stopped_after_its_last_step_knows_its_held_out_cosine(
    tiny_model: Path,
    tile_folder: Path,
    held_out_folder: Path,
    tiny_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "student", held_out=str(held_out_folder))

    def stop(*_: Any, **__: Any) -> None:
        raise _Stopped

    with monkeypatch.context() as patched, pytest.raises(_Stopped):
        patched.setattr(whole_run, "_write", stop)
        distill(config)
    report = distill(config)
    assert report.resumed_from == 12
    assert report.held_out_cosine == read_metrics(config.out)[-1]["held_out_cosine"] is not None
    assert f"cosine to the teacher {report.held_out_cosine:.4f}" in (config.out / "README.md").read_text()


def test_processes_that_find_different_checkpoints_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(steps: list[int], own: int) -> None:
        steps[:] = [own, 0]

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    state: Any = type("State", (), {"step": 5})
    with pytest.raises(UsageError, match=r"different steps \(5, 0\)"):
        sharding.agree(state, None)


def test_two_processes_see_every_view_of_an_epoch_once(tile_folder: Path) -> None:
    weak = Augmentation.named("weak")
    seen: list[int] = []

    class Target:
        def of(self, views: Any, *_: Any) -> None:
            seen.extend(views.tolist())

    tiles = open_training_tiles([str(tile_folder)])
    both = [
        streams.ViewStream(
            tiles=tiles, targets=(Target(),), origins=(), seeds=(0, 1), stored=weak,  # type: ignore[arg-type]
            fresh=weak, fresh_share=0.5, tile_px=32, batch=4, seed=987, order=EvenOrder(2 * len(tiles), 987), rank=rank,
            world=2,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    epochs = []
    for epoch in (0, 1):
        steps = both[0].steps_per_epoch
        for stream in both:
            list(stream.run(epoch * steps, (epoch + 1) * steps, threads=2))
        assert sorted(seen) == list(range(both[0].views))
        epochs.append(seen.copy())
        seen.clear()
    assert epochs[0] != epochs[1]
