"""Which device each process uses; CUDA is faked, so that this runs anywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config

from atlas_edge.distill.data.teachers import open_teacher
from atlas_edge.distill.targets.losses import Target
from atlas_edge.distill.targets.phis import FeatureStatistics, phi_s
from atlas_edge.distill.training import loop
from atlas_edge.distill.training.device import IMITATED, half_type, own_device
from atlas_edge.distill.training.run import distill, held_out_tiles, open_stream, training_tiles
from atlas_edge.distill.training.student import Distiller
from atlas_edge.errors import UsageError
from atlas_edge.system.hardware import Cpu


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """This process is the fourth of a machine with eight GPUs; gives the devices that networks are sent to."""
    sent: list[Any] = []

    def send(self: torch.nn.Module, device: Any) -> torch.nn.Module:
        sent.append(device)
        return self

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.nn.Module, "to", send)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: send(self, torch.device("cuda")))
    monkeypatch.setenv("LOCAL_RANK", "3")
    return sent


@pytest.mark.parametrize(("native", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_that_would_imitate_bfloat16_computes_in_float32(
    native: bool, kind: torch.dtype, tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[torch.dtype] = []
    monkeypatch.setattr(Cpu, "bfloat16", native)
    genuine = Distiller.forward

    def watched(self: Distiller, images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype)
        return genuine(self, images)

    monkeypatch.setattr(Distiller, "forward", watched)
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path / "s", steps=1, precision="bf16")
    report = distill(config)
    assert seen == [kind]
    assert report.warnings == (() if native else (IMITATED,))


def test_each_process_s_teacher_is_on_its_own_gpu(tiny_model: Path, eight_gpus: list[Any]) -> None:
    assert own_device() == torch.device("cuda", 3)
    open_teacher(str(tiny_model))
    assert eight_gpus == [torch.device("cuda", 3)]


def test_the_teacher_of_the_held_out_tiles_is_there_too(
    tiny_model: Path,
    tile_folder: Path,
    held_out_folder: Path,
    tiny_student: Path,
    tmp_path: Path,
    eight_gpus: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(tiny_model, tile_folder, tiny_student, tmp_path, held_out=str(held_out_folder))
    stream = open_stream(config, training_tiles(config))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch, "autocast", _Autocast)
    assert len(held_out_tiles(config, stream).features) == 24
    assert eight_gpus == [torch.device("cuda", 3)] * 2


class _Autocast:
    seen: list[tuple[str, torch.dtype, bool]] = []  # noqa: RUF012 - of the test

    def __init__(self, kind: str, *, dtype: torch.dtype, enabled: bool) -> None:
        self.seen.append((kind, dtype, enabled))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_teacher_computes_in_16_bits_on_a_gpu_and_in_float32_on_a_cpu(
    tiny_model: Path, eight_gpus: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch, "autocast", _Autocast)
    _Autocast.seen.clear()
    open_teacher(str(tiny_model)).features(tiles, grid=4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    open_teacher(str(tiny_model)).features(tiles, grid=4)
    open_teacher(str(tiny_model), half=False).features(tiles, grid=4)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    open_teacher(str(tiny_model)).features(tiles, grid=4)
    assert [(kind, enabled) for kind, _, enabled in _Autocast.seen] == [
        ("cuda", True), ("cuda", True), ("cuda", False), ("cpu", False)
    ]  # fmt: skip
    assert [dtype for _, dtype, _ in _Autocast.seen[:2]] == [torch.bfloat16, torch.float16]
    assert half_type(torch.device("cpu")) == torch.bfloat16


def test_accelerate_and_the_rest_agree_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("accelerate.Accelerator", lambda *, cpu: asked.append(cpu))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    loop._accelerator()
    assert asked == [True] and own_device() == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(eight_gpus: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(UsageError, match=r"process 9 .* there are 8[\s\S]*--num_processes 8"):
        own_device()


def test_targets_are_those_of_the_transform_in_float32() -> None:
    generator = np.random.default_rng(0)
    # One channel with a mean far from 0 and a large deviation, as ViTs have them.
    features = (generator.normal(size=(500, 12)) * np.geomspace(0.1, 30, 12) + 200.0).astype(np.float32)
    transform = phi_s(FeatureStatistics.of([features]))
    target = Target(transform)
    found = target(torch.from_numpy(features))
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - transform(features)).max() < 1e-4
    assert torch.equal(target(torch.from_numpy(features).half()), target(torch.from_numpy(features).half().float()))
    assert not target.state_dict()  # a checkpoint holds the transform itself
