# ruff: noqa: E501 - tables of command lines read best unwrapped
import errno
import itertools
import json
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_runs import losses_of, run_two, tiny_config

from atlas_edge.distill.closed_form.fit import fit_student
from atlas_edge.distill.data.augment import Augmentation
from atlas_edge.distill.data.cache import write_cache
from atlas_edge.distill.data.teachers import open_teacher
from atlas_edge.distill.data.tileset import open_training_tiles
from atlas_edge.distill.training import checkpoint, loop
from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.distill.training.run import distill, open_stream
from atlas_edge.distill.training.student import build_student, save_student, student_folder
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.models.load import load_model
from atlas_edge.models.students import EMBEDDED
from atlas_edge.spec import EncoderSpec
from support import ROOT


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


def test_training_lowers_the_loss_and_writes_a_folder_that_timm_and_we_load(
    tiny_model: Path, tile_folder: Path, held_out_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    out = tmp_path / "student"
    report = distill(
        tiny_config(tiny_model, tile_folder, tiny_student, out, steps=60, held_out=str(held_out_folder), half=True)
    )
    losses = losses_of(out)
    assert np.mean([losses[s] for s in range(51, 61)]) < 0.8 * np.mean([losses[s] for s in range(1, 6)])
    assert report.held_out_cosine is not None and report.held_out_cosine > 0.3
    last = read_metrics(out)[-1]
    assert last["held_out_cosine"] == report.held_out_cosine
    assert 0.5 < last["held_out_knn"] <= 2 and 0.5 < last["held_out_probe"] <= 2  # dark and light: both tell them apart
    assert load_model(str(out)).spec.embed_dim == 32
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 18, 32)
    assert all(value.dtype == torch.float16 for value in load_file(out / "model.safetensors").values())
    card = (out / "README.md").read_text()
    assert "tiny-vit" in card and "cc0-1.0" in card and "Not for clinical use" in card
    assert (out / "loss.png").stat().st_size > 1000
    assert list((out / "tensorboard").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["student"]  # the unfinished run's folder is gone


def test_a_stopped_run_goes_on_to_the_same_losses_and_weights(
    tiny_model: Path,
    tile_folder: Path,
    tiny_student: Path,
    tmp_path: Path,
    every_step: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    distill(tiny_config(tiny_model, tile_folder, tiny_student, whole))

    class Killed(Exception):
        pass

    def stop(state: Any) -> None:
        if state.step == 8:
            raise Killed

    with pytest.raises(Killed):
        distill(tiny_config(tiny_model, tile_folder, tiny_student, broken), progress=stop)
    report = distill(tiny_config(tiny_model, tile_folder, tiny_student, broken))
    assert report.resumed_from == 5
    assert losses_of(broken) == losses_of(whole)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_five_kills_lead_to_the_same_losses_and_weights(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("kill_five_times.py")
    seed = random.SystemRandom().randrange(10**6)
    done = subprocess.run(
        [sys.executable, script, tiny_model, tile_folder, tiny_student, tmp_path, str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [kill["killed"] for kill in found["kills"]] == [True] * 5, found
    assert found["losses_equal"] and found["weights_equal"], found
    assert found["steps"] == 160 and found["last_loss"] < found["first_loss"], found


def test_cached_features_give_the_losses_of_the_running_teacher(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    cache = tmp_path / "cache"
    tiles = open_training_tiles([str(tile_folder)])
    write_cache(
        cache,
        open_teacher(str(tiny_model)),
        tiles,
        seeds=(0, 1),
        augmentation=Augmentation.named("weak"),
        tile_px=32,
        grid=4,
    )
    distill(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "online"))
    distill(tiny_config(cache, tile_folder, tiny_student, tmp_path / "cached"))
    online, cached = losses_of(tmp_path / "online"), losses_of(tmp_path / "cached")
    assert np.allclose([online[s] for s in range(1, 13)], [cached[s] for s in range(1, 13)], rtol=2e-2)


def test_two_processes_equal_one(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    distill(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "one", checkpoint_every=12))
    out = tmp_path / "two"
    # The second process sees other features before the first step, as on a machine that rounds differently.
    config = tiny_config(tiny_model, tile_folder, tiny_student, out, checkpoint_every=12)
    for process in run_two(config, TINY_FAULT="differs"):
        assert process.status == 0, process.complaint
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "one"))
    distance = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    moved = max(
        float((theirs[name] - load_file(tiny_student / "model.safetensors")[name]).abs().max()) for name in theirs
    )
    assert distance < 0.05 * moved
    one, two = losses_of(tmp_path / "one"), losses_of(out)
    assert one.keys() == two.keys() and [two[step] for step in one] == pytest.approx(list(one.values()), rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = loop._loss

    def broken(*arguments: Any) -> Any:
        loss, *rest = genuine(*arguments)
        return loss * float("nan"), *rest

    monkeypatch.setattr(loop, "_loss", broken)
    with pytest.raises(UsageError, match="loss became nan at step 0"):
        distill(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "student"))


@pytest.mark.parametrize(
    ("where", "moment", "said"),
    [
        ("atlas_edge.distill.training.loop._loss", 0, r"at step 0 with --batch 8[\s\S]*--accumulate 2"),
        ("atlas_edge.distill.training.loop._look", 0, r"at step 0 with --batch 8[\s\S]*--accumulate 2"),
        ("atlas_edge.distill.data.teachers.Teacher.features", 0, r"while models were opened[\s\S]*atlas-distill cache"),
        ("atlas_edge.distill.data.teachers.Teacher.features", 3, r"before the first step[\s\S]*atlas-distill cache"),
        (
            "atlas_edge.distill.data.teachers.Teacher.features",
            5,
            r"in the threads[\s\S]*atlas-distill cache[\s\S]*--batch 4",
        ),
    ],
)
def test_memory_that_runs_out_is_explained(
    where: str,
    moment: int,
    said: str,
    tiny_model: Path,
    tile_folder: Path,
    held_out_folder: Path,
    tiny_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The teacher is asked twice about the held-out tiles, twice before the first step, and then once a step.
    genuine, calls = pkgutil.resolve_name(where), itertools.count()

    def no_memory(*arguments: Any, **options: Any) -> Any:
        if next(calls) < moment:
            return genuine(*arguments, **options)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(where, no_memory)
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "student", evaluate_every=1)
    with pytest.raises(RuntimeMissing, match=f"memory ran out {said}"):
        distill(replace(config, held_out=str(held_out_folder)))


def test_a_fit_that_memory_does_not_hold_is_explained(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("atlas_edge.distill.training.student.inherit", no_memory)
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "student", init="teacher", init_tiles=40)
    for command in (fit_student, distill):
        with pytest.raises(RuntimeMissing, match=r"in the fit to 40 views[\s\S]*--init-tiles 20"):
            command(config)


def test_a_full_disk_is_explained_and_leaves_the_checkpoint_before(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "student"
    genuine = checkpoint.write_atomic
    written: list[Path] = []

    def full(path: Path, data: bytes) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        genuine(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(InputError, match=r"checkpoint of step 10 .*No space left[\s\S]*free \d+ MB"):
        distill(tiny_config(tiny_model, tile_folder, tiny_student, out))
    monkeypatch.undo()
    assert distill(tiny_config(tiny_model, tile_folder, tiny_student, out)).resumed_from == 5


def test_training_begins_with_the_weights_that_a_fit_gives(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    tiny = {"steps": 2, "lr": 1e-6}
    distill(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "inherited", init="teacher", **tiny))
    fit_student(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "fitted", init="teacher"))
    distill(tiny_config(tiny_model, tile_folder, tmp_path / "fitted", tmp_path / "from-fitted", **tiny))
    assert losses_of(tmp_path / "from-fitted") == losses_of(tmp_path / "inherited")
    inherited, fitted, given = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "inherited", tmp_path / "fitted", tiny_student)
    )
    for name, value in fitted.items():
        assert torch.allclose(inherited[name], value, atol=1e-5)
    assert max(float((value - given[name]).abs().max()) for name, value in fitted.items()) > 0.01
    assert "first weights: those of the folder fitted" in (tmp_path / "from-fitted" / "README.md").read_text()


def test_heads_are_not_fitted_to_random_weights(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def looked(*arguments: Any, student: Any, **options: Any) -> Any:
        seen.append(student is not None)
        raise UsageError("far enough")

    monkeypatch.setattr("atlas_edge.distill.training.state.look_over", looked)
    for student in (Path("vit_tiny_patch16_224"), tiny_student):
        with pytest.raises(UsageError, match="far enough"):
            distill(tiny_config(tiny_model, tile_folder, student, tmp_path / "student"))
    assert seen == [False, True]


def test_heads_are_fitted_to_every_teacher(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    first = {}
    for fit in (True, False):
        out = tmp_path / str(fit)
        config = tiny_config(tiny_model, tile_folder, tiny_student, out, steps=1, lr=1e-9, fit_heads=fit)
        distill(replace(config, teachers=(str(tiny_model), str(tiny_student))))
        first[fit] = losses_of(out)[1]
    assert first[True] < 0.5 * first[False]


def test_a_name_of_our_own_is_never_a_folder_that_lies_there(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("atlas2-s", "atlas2-demo"):
        fit_student(tiny_config(tiny_model, tile_folder, tiny_student, Path(name), init="teacher"))
        assert student_folder(f"./{name}") == Path(name)
    assert student_folder("atlas2-s") is None
    assert student_folder("atlas2-demo") == EMBEDDED["atlas2-demo"].folder
    backbone, architecture = build_student("atlas2-demo")
    assert architecture.name == "vit_tiny_patch16_224" and architecture.mpp == 0.5
    expected = load_file(EMBEDDED["atlas2-demo"].folder / "model.safetensors")
    assert all(torch.equal(value, expected[name].float()) for name, value in backbone.state_dict().items())


def test_weights_that_float16_cannot_hold_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    backbone, architecture = build_student(str(tiny_student))
    with torch.no_grad():
        backbone.norm.weight[0] = 1e5
    with pytest.raises(UsageError, match=r"norm\.weight holds weights that float16 cannot"):
        save_student(tmp_path, backbone.state_dict(), architecture, licence="other", half=True)
    save_student(tmp_path, backbone.state_dict(), architecture, licence="other", half=False)
    assert load_file(tmp_path / "model.safetensors")["norm.weight"].max() == 1e5


def test_timm_reads_a_student_that_knows_its_scale(tiny_student: Path, tmp_path: Path) -> None:
    backbone, architecture = build_student(str(tiny_student))
    learned = replace(architecture, mpp=0.5).of_tiles((0.25, 2.0))
    save_student(tmp_path, backbone.state_dict(), learned, licence="mit", half=False)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in network.state_dict().items())
    spec = load_model(str(tmp_path)).spec
    assert (spec.mpp, spec.mpp_range, spec.scales) == (0.5, (0.25, 2.0), "0.25 to 2 µm per pixel")
    assert EncoderSpec.model_validate_json(spec.model_dump_json()) == spec
    assert build_student(str(tmp_path))[1] == learned
    # What was learnt at single scales afterwards does not undo it.
    assert learned.of_tiles(None) == learned


def test_a_place_that_cannot_be_written_is_told_before_the_fit(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    begun: list[object] = []
    monkeypatch.setattr("atlas_edge.distill.training.state.fit_to_teacher", lambda *arguments: begun.append(arguments))
    with pytest.raises(InputError, match="takes no files"):
        fit_student(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "file" / "out", init="teacher"))
    assert begun == []


@pytest.mark.parametrize(
    "options",
    [{"loss": "l1"}, {"matryoshka": (8, 16)}, {"relational_weight": 1.0}, {"patch_weight": 0.0}, {"phi_s": False}, {"precision": "bf16"},
     {"head": "mlp", "matryoshka": (8,)}, {"layer_decay": 0.5}],
)  # fmt: skip
def test_every_variant_of_the_loss_trains(
    options: dict[str, Any], tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    out = tmp_path / "student"
    distill(tiny_config(tiny_model, tile_folder, tiny_student, out, steps=15, fit_heads=False, **options))
    losses = losses_of(out)
    assert losses[15] < losses[1]
    # From the same weights, with heads that are fitted to them.
    distill(tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "fitted", steps=1, **options))
    assert losses_of(tmp_path / "fitted")[1] < 0.5 * losses[1]
    rows = read_metrics(out)
    assert (rows[0]["patch_loss"] is None) == (options.get("patch_weight") == 0.0)


def test_slides_come_equally_often_where_that_is_asked(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(tile_folder, pack)
    # One slide has three tiles of twenty-four.
    files = sorted(path.relative_to(pack).as_posix() for path in pack.rglob("*.png"))
    rows = [f"{file},,{'small' if number < 3 else 'large'}" for number, file in enumerate(files)]
    (pack / "manifest.csv").write_text("\n".join(["file,shard,group", *rows]) + "\n")
    config = tiny_config(tiny_model, pack, tiny_student, tmp_path / "s", steps=2, balance="slides")
    tiles = open_training_tiles(config.tiles)
    drawn = open_stream(config, tiles).order.at(np.arange(40), 0) % len(tiles)
    assert sum(tiles.entry(index)[1].group == "small" for index in drawn.tolist()) == 20
    distill(config)
    with pytest.raises(UsageError, match="few does not say of which slide its tiles are"):
        distill(replace(config, tiles=(str(tile_folder),), out=tmp_path / "other"))


def test_several_teachers_teach_together_and_each_term_is_a_mean_over_them(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    losses = {}
    for teachers in ((tiny_model, tiny_student), (tiny_model,), (tiny_student,)):
        out = tmp_path / str(len(losses))
        config = tiny_config(tiny_model, tile_folder, tiny_student, out, relational_weight=100.0, steps=1, lr=1e-9)
        report = distill(replace(config, teachers=tuple(map(str, teachers))))
        assert [teacher.name for teacher in report.teachers] == [teacher.name for teacher in teachers]
        losses[teachers] = losses_of(out)[1]
    both, *each = losses.values()
    assert both == pytest.approx(sum(each) / 2, rel=1e-3)


def test_patch_tokens_that_no_teacher_gives_are_an_error(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path, every_step: None
) -> None:
    cache = tmp_path / "cache"
    weak = Augmentation.named("weak")
    teacher, tiles = open_teacher(str(tiny_model)), open_training_tiles([str(tile_folder)])
    write_cache(cache, teacher, tiles, seeds=(0, 1), augmentation=weak, tile_px=32, grid=None)
    config = tiny_config(cache, tile_folder, tiny_student, tmp_path / "student", steps=2)
    with pytest.raises(UsageError, match=r"no teacher gives patch tokens[\s\S]*--grid 4.*--patch-weight 0"):
        distill(config)
    report = distill(replace(config, teachers=(str(cache), str(tiny_model))))
    assert report.warnings == ("tiny-vit teaches no patch tokens: its features hold none",)
    assert read_metrics(config.out)[0]["patch_loss"] is not None
    distill(replace(config, patch_weight=0.0), overwrite=True)
    assert read_metrics(config.out)[0]["patch_loss"] is None
