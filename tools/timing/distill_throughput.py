"""How fast the student trains here: against a plain timm and PyTorch loop, and with cached against running teachers.

The arms take turns within one process, a few steps each, because machines drift; what counts is the ratio of a round.
`student` and `teacher` compute their networks alone: what a step takes beyond them is what this package itself costs:

    python tools/timing/distill_throughput.py TEACHER --tiles TILES --student atlas2-s
"""

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.cli import make_app, print_json, require_module, run_app
from atlas_edge.distill.data.augment import Augmentation
from atlas_edge.distill.data.cache import FeatureCache
from atlas_edge.distill.data.stream import TrainingBatch, ViewStream
from atlas_edge.distill.data.tileset import TrainingTiles
from atlas_edge.distill.reporting.display import Display
from atlas_edge.distill.training.config import AugmentationName, TrainConfig
from atlas_edge.distill.training.device import autocast, own_device
from atlas_edge.distill.training.held_out import normalised
from atlas_edge.distill.training.loop import train_step
from atlas_edge.distill.training.run import open_stream, training_tiles
from atlas_edge.distill.training.state import start
from atlas_edge.distill.training.student import build_student
from atlas_edge.errors import UsageError
from atlas_edge.options import Many, Output

if TYPE_CHECKING:
    from rich.console import Console

# Trains for one turn, given its number; returns the seconds that were waited for data.
_Turn = Callable[[int], float]


app = make_app("distill_throughput", __doc__ or "")


@app.default
def throughput(
    *teachers: str,
    tiles: Many,
    student: str = "atlas2-s",
    online: Many = (),
    batch: int = 32,
    steps: int = 8,
    rounds: int = 5,
    precision: Literal["bf16", "fp16", "fp32"] = "bf16",
    threads: int | None = None,
    workers: int = 1,
    plain: bool = True,
    output: Output = Output(),
) -> None:
    """Time training on this machine against a plain timm and PyTorch loop of the same model and batch.

    Args:
        teachers: As for training; cached features are what is usually timed.
        tiles: Tile sets.
        student: Registry name, timm architecture, or a folder.
        online: Teachers to time running beside the student, too, as if there were no cache.
        batch: Views a step.
        steps: Timed steps of each arm in a round.
        rounds: Rounds; the arms take turns.
        precision: Autocast of the student.
        threads: PyTorch's threads.
        workers: Decoding threads (of ours) and processes (of the plain loop's DataLoader).
        plain: Time the plain loop, too.
        output: What is printed.
    """
    screen = output.screen()
    require_module("timm", extra="torch")
    config = TrainConfig(
        teachers=teachers,
        tiles=tiles,
        student=student,
        batch=batch,
        threads=threads,
        workers=workers,
        precision=precision,
        out=Path("unused"),
    )
    if steps < 1 or rounds < 2:
        raise UsageError("expected --steps of 1 or more and --rounds of 2 or more", hint="see its --help")
    with Display(screen, 0) as display:
        found = measure(config, online=online, plain=plain, steps=steps, rounds=rounds, progress=display.arms)
    if output.json:
        others = [name for name in found.images_per_s if name != "distill"]
        ratios = {name: asdict(found.ratio("distill", name)) for name in others}
        outside = {name: asdict(found.outside(name)) for name in found.losses}
        print_json(asdict(found) | {"ratios": ratios, "outside": outside, "loss_difference": found.loss_difference()})
    elif not output.quiet:
        print_throughput(screen, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Images a second of each arm, round by round, from an empty pipeline to an empty one.

    `outside` says what of a step is neither the student's network nor its teacher's: views, targets,
    heads, losses, averages, waiting, and what threads take from one another.

    Attributes:
        images_per_s: Arm -> one figure a round.
        waiting_share: Arm -> share of its time that the student waited for data, median over the rounds.
        losses: Arm that trains by our loop -> loss of each of its steps; the arms see the same views.
        cpu_threads: PyTorch's.
        batch: Views a step.
    """

    images_per_s: dict[str, tuple[float, ...]]
    waiting_share: dict[str, float]
    losses: dict[str, tuple[float, ...]]
    cpu_threads: int
    batch: int

    def outside(self, arm: str) -> Interval:
        """Share of a step of `distill` (stored features) or `online` that is spent outside student and teacher."""
        networks = ("student", "teacher") if arm == "online" else ("student",)
        alone = sum(1.0 / np.array(self.images_per_s[name]) for name in networks)
        ratio = geometric_mean_interval(1.0 / np.array(self.images_per_s[arm]) / alone)
        # 1 - 1 / ratio rises with the ratio, and takes its interval along.
        return replace(ratio, estimate=1 - 1 / ratio.estimate, low=1 - 1 / ratio.low, high=1 - 1 / ratio.high)

    def ratio(self, arm: str, other: str) -> Interval:
        """Geometric mean over the rounds of how much faster one arm is than another, with its 95 % interval."""
        return geometric_mean_interval(np.array(self.images_per_s[arm]) / np.array(self.images_per_s[other]))

    def loss_difference(self) -> float | None:
        """Largest difference between a step's losses with stored features and with the running teacher, as a share."""
        if "online" not in self.losses:
            return None
        cached, online = (np.array(self.losses[name]) for name in ("distill", "online"))
        return float(np.abs(cached / online - 1.0).max())


def measure(
    config: TrainConfig,
    *,
    online: tuple[str, ...] = (),
    plain: bool = True,
    steps: int = 8,
    rounds: int = 5,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Throughput:
    """Time the arms `distill` (the options as given), `plain`, `data`, `student` and, if named, `online` and `teacher`.

    `data` draws and decodes the batches of `distill` and trains nothing: as long as it is much faster, the data is not
    what training waits for. `student` runs the student's network forward and back, with AdamW's step, and nothing else;
    `teacher` runs the teachers of `online` on tiles that lie ready.

    Args:
        config: As for training; nothing is written.
        online: Teachers to run beside the student, as if there were no cache.
        plain: Time the plain loop, too.
        steps: Timed steps an arm and round.
        rounds: Rounds.
        progress: Called with arms timed and arms in all.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tiles = training_tiles(config)
    losses: dict[str, list[float]] = {name: [] for name in ("distill", "online") if name == "distill" or online}
    with TemporaryDirectory() as scratch:
        arms: dict[str, _Turn] = {
            "distill": _ours(config, tiles, Path(scratch) / "a", steps, losses["distill"]),
            **({"plain": _plain(config, tiles, steps)} if plain else {}),
            "data": _data(config, tiles, steps),
            "student": _student(config, tiles, Path(scratch) / "s", steps),
        }
        if online:
            other = replace(config, teachers=online, **_drawn(config, tiles))
            arms["online"] = _ours(other, tiles, Path(scratch) / "b", steps, losses["online"])
            arms["teacher"] = _teacher(other, tiles, steps)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        waits: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(rounds + 1):
            for place, (name, arm) in enumerate(arms.items()):
                begun = time.perf_counter()
                waited = arm(number)
                elapsed = time.perf_counter() - begun
                # The first round warms up.
                if number:
                    rates[name].append(steps * config.batch / elapsed)
                    waits[name].append(waited / elapsed)
                progress(number * len(arms) + place + 1, (rounds + 1) * len(arms))
    return Throughput(
        images_per_s={name: tuple(found) for name, found in rates.items()},
        waiting_share={name: float(np.median(found)) for name, found in waits.items()},
        losses={name: tuple(found) for name, found in losses.items()},
        cpu_threads=torch.get_num_threads(),
        batch=config.batch,
    )


def _ours(config: TrainConfig, tiles: TrainingTiles, run: Path, steps: int, losses: list[float]) -> _Turn:
    run.mkdir()
    stream = open_stream(config, tiles)
    # What targets are scaled by and heads begin with does not change how long a step takes.
    state = start(config, stream, run, statistics_views=64)

    def turn(number: int) -> float:
        waited = 0.0
        for batch, waiting in _batches(stream, config, number, steps):
            losses.append(train_step(config, state, None, batch)["loss"])
            waited += waiting
        return waited

    return turn


def _data(config: TrainConfig, tiles: TrainingTiles, steps: int) -> _Turn:
    stream = open_stream(config, tiles)
    return lambda number: sum(waiting for _, waiting in _batches(stream, config, number, steps))


def _student(config: TrainConfig, tiles: TrainingTiles, run: Path, steps: int) -> _Turn:
    run.mkdir()
    stream = open_stream(config, tiles)
    state = start(config, stream, run, statistics_views=64)
    device = own_device()
    images = normalised(stream.read(0).pixels, state.architecture).to(device)

    def turn(_: int) -> float:
        for _step in range(steps):
            with autocast(device, config.precision):
                tokens = state.model(images)
            tokens.float().square().mean().backward()
            state.optimiser.step()
            state.optimiser.zero_grad(set_to_none=True)
        return 0.0

    return turn


def _teacher(config: TrainConfig, tiles: TrainingTiles, steps: int) -> _Turn:
    stream = open_stream(config, tiles)
    shown, _ = stream.sample_views(config.batch)
    views = np.arange(len(shown), dtype=np.int64)

    def turn(_: int) -> float:
        for _step in range(steps):
            for target in stream.targets:
                target.of(views, views, shown)
        return 0.0

    return turn


def _batches(
    stream: ViewStream, config: TrainConfig, number: int, steps: int
) -> Generator[tuple[TrainingBatch, float], None, None]:
    """Batches of a turn, and how long each was waited for.

    The pipeline starts empty and ends empty, so that all of a turn's work, a running teacher's above all, falls within
    it and none into the next arm's.
    """
    with closing(stream.run(number * steps, (number + 1) * steps, threads=config.workers)) as batches:
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch, time.perf_counter() - begun


def _drawn(config: TrainConfig, tiles: TrainingTiles) -> dict[str, Any]:
    """The options that make a running teacher see the views that the first cache holds."""
    folder = Path(config.teachers[0])
    if not (folder / "cache.json").is_file():
        return {}
    index = FeatureCache(folder, tiles).index
    names: tuple[AugmentationName, ...] = ("none", "geometry", "weak", "strong")
    stored = next((name for name in names if asdict(Augmentation.named(name)) == index.augmentation), None)
    return {"views": len(index.seeds)} | ({} if stored is None else {"stored": stored})


def _plain(config: TrainConfig, tiles: TrainingTiles, steps: int) -> _Turn:
    """What one writes without this package: a DataLoader, torchvision's augmentation, AdamW, a cosine loss."""
    import timm

    _, architecture = build_student(config.student)
    device = own_device()
    backbone: Any = timm.create_model(architecture.name, pretrained=False, **architecture.arguments).to(device)
    head = nn.Linear(backbone.num_features, 384).to(device)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, fused=True)
    target = torch.randn(config.batch, int(backbone.patch_embed.num_patches) + 1, 384).to(device)
    batches = _plain_batches(config, tiles, architecture.tile_px)

    def turn(_: int) -> float:
        waited = 0.0
        for _step in range(steps):
            begun = time.perf_counter()
            images = next(batches).to(device)
            waited += time.perf_counter() - begun
            with autocast(device, config.precision):
                tokens = backbone.forward_features(images)
                tokens = torch.cat([tokens[:, :1], tokens[:, backbone.num_prefix_tokens :]], dim=1)
                predicted = head(tokens)
            loss = 1.0 - F.cosine_similarity(predicted.float(), target, dim=-1).mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return waited

    return turn


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


def print_throughput(screen: "Console", found: Throughput) -> None:
    """Table of the timed loops."""
    from rich.table import Table

    table = Table("loop", "images/s, median", "waits for data", "distill over it (95 % interval)")
    for name, rates in found.images_per_s.items():
        ratio = None if name == "distill" else found.ratio("distill", name)
        text = "" if ratio is None else f"{ratio.estimate:.2f}x ({ratio.low:.2f} … {ratio.high:.2f})"
        table.add_row(name, f"{sorted(rates)[len(rates) // 2]:.1f}", f"{found.waiting_share[name]:.1%}", text)
    screen.print(table)
    for name in found.losses:
        share, step_ms = found.outside(name), 1e3 * found.batch / np.median(found.images_per_s[name])
        screen.print(
            f"{name}: {step_ms:.0f} ms a step, {share.estimate:.1%} of them ({share.low:.1%} … {share.high:.1%}), "
            f"{step_ms * share.estimate:.0f} ms, outside student{' and teacher' if name == 'online' else ''}"
        )
    screen.print(f"{found.cpu_threads} threads; the loops took turns in one process; data: batches without training")
    difference = found.loss_difference()
    if difference is not None:
        screen.print(
            f"losses of {len(found.losses['online'])} steps with stored features and with the running teacher differ "
            f"by at most {difference:.2%}"
        )


if __name__ == "__main__":
    sys.exit(run_app(app))
