"""How fast the student trains here: against a plain timm and PyTorch loop, and with cached against running teachers.

The arms take turns within one process, a few steps each, because machines drift; what counts is the ratio of a round.
Each arm drops its first steps of a round: batches that were decoded while another arm ran would flatter it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from atlas_edge.distill.config import TrainConfig
from atlas_edge.distill.run import open_stream, training_tiles
from atlas_edge.distill.state import start
from atlas_edge.distill.student import build_student
from atlas_edge.distill.tileset import TrainingTiles
from atlas_edge.distill.train import train_step

_DROPPED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Images a second of each arm, round by round.

    Attributes:
        images_per_s: Arm -> one figure a round.
        waiting_share: Arm -> share of its time that the student waited for data, median over the rounds.
        cpu_threads: PyTorch's.
    """

    images_per_s: dict[str, tuple[float, ...]]
    waiting_share: dict[str, float]
    cpu_threads: int

    def ratios(self, arm: str, other: str) -> tuple[float, float, float]:
        """Least, median and largest ratio of two arms over the rounds."""
        found = np.array(self.images_per_s[arm]) / np.array(self.images_per_s[other])
        return float(found.min()), float(np.median(found)), float(found.max())


def measure(config: TrainConfig, *, online: str | None = None, steps: int = 8, rounds: int = 5) -> Throughput:
    """Time the arms `distill` (the options as given), `plain`, and `online` where a teacher is named.

    Args:
        config: As for training; nothing is written.
        online: A teacher to run beside the student, as if there were no cache.
        steps: Timed steps an arm and round.
        rounds: Rounds.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tiles = training_tiles(config)
    total = rounds * (steps + _DROPPED)
    with TemporaryDirectory() as scratch:
        arms = {"distill": _ours(config, tiles, Path(scratch) / "a", total), "plain": _plain(config, tiles)}
        if online is not None:
            other = config.model_copy(update={"teachers": (online,)})
            arms["online"] = _ours(other, tiles, Path(scratch) / "b", total)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        waits: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                for _ in range(_DROPPED):
                    next(arm)
                begun = time.perf_counter()
                waited = sum(next(arm) for _ in range(steps))
                elapsed = time.perf_counter() - begun
                rates[name].append(steps * config.batch / elapsed)
                waits[name].append(waited / elapsed)
        for arm in arms.values():
            arm.close()
    return Throughput(
        images_per_s={name: tuple(found) for name, found in rates.items()},
        waiting_share={name: float(np.median(found)) for name, found in waits.items()},
        cpu_threads=torch.get_num_threads(),
    )


def _ours(config: TrainConfig, tiles: TrainingTiles, run: Path, total: int) -> Any:
    run.mkdir()
    stream = open_stream(config, tiles)
    # What the targets are scaled by does not change how long a step takes.
    state = start(config, stream, run, statistics_views=64)
    batches = stream.run(0, total, threads=config.workers)
    try:
        while True:
            begun = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begun
            train_step(config, state, None, batch)
            yield waited
    finally:
        batches.close()


def _plain(config: TrainConfig, tiles: TrainingTiles) -> Any:
    """What one writes without this package: a DataLoader, torchvision's augmentation, AdamW, a cosine loss."""
    import timm

    _, architecture = build_student(config.student)
    backbone: Any = timm.create_model(architecture.name, pretrained=False, **architecture.arguments)
    head = nn.Linear(backbone.num_features, 384)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, fused=True)
    target = torch.randn(config.batch, int(backbone.patch_embed.num_patches) + 1, 384)
    batches = _plain_batches(config, tiles, architecture.tile_px)
    while True:
        begun = time.perf_counter()
        images = next(batches)
        waited = time.perf_counter() - begun
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            tokens = backbone.forward_features(images)
            tokens = torch.cat([tokens[:, :1], tokens[:, backbone.num_prefix_tokens :]], dim=1)
            predicted = head(tokens)
        loss = 1.0 - F.cosine_similarity(predicted.float(), target, dim=-1).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield waited


def _plain_batches(config: TrainConfig, tiles: TrainingTiles, tile_px: int) -> Iterator[torch.Tensor]:
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    augment = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(tile_px, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(0.25, 0.25, 0.25, 0.05),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    loader = DataLoader(_Views(tiles, augment), config.batch, shuffle=True, drop_last=True, num_workers=config.workers)
    while True:
        yield from loader


class _Views(Dataset[torch.Tensor]):
    def __init__(self, tiles: TrainingTiles, augment: Callable[[NDArray[np.uint8]], torch.Tensor]) -> None:
        self._tiles, self._augment = tiles, augment

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._augment(self._tiles.read(index))
