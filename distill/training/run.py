"""From a configuration to a student's folder."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlas_edge.distill.data.augment import Augmentation
from atlas_edge.distill.data.cache import CacheIndex, FeatureCache
from atlas_edge.distill.data.order import BalancedOrder, EvenOrder
from atlas_edge.distill.data.stream import CachedTargets, OnlineTargets, Targets, ViewStream
from atlas_edge.distill.data.teachers import Teacher, licence_warning, open_teacher
from atlas_edge.distill.data.tileset import TrainingTiles, open_training_tiles
from atlas_edge.distill.reporting.card import student_card
from atlas_edge.distill.training.checkpoint import NAME
from atlas_edge.distill.training.config import STUDENT_FILES, TrainConfig
from atlas_edge.distill.training.device import IMITATED, imitated, own_device
from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.distill.training.out_of_memory import memory_explained, stored_features
from atlas_edge.distill.training.sharding import sharding_wanted
from atlas_edge.distill.training.trackers import RUN_IDS
from atlas_edge.errors import UsageError
from atlas_edge.manifest import ModelProvenance
from atlas_edge.models.published.licences import strictest_licence
from atlas_edge.system.atomic import atomic_folder, check_vacant
from atlas_edge.system.hardware import peak_memory_bytes
from atlas_edge.tiles.slide_spec import slide_spec

_HELD_OUT_TILES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run did, as printed with `--json` and kept in the student's `report.json`.

    Attributes:
        student: Its folder.
        steps: Steps of the run.
        resumed_from: Steps that an earlier process had done.
        held_out_cosine: Last one; None without held-out tiles.
        images_per_s: Median over the logged steps.
        waiting_share: Share of the time that the student waited for data, median over the logged steps.
        peak_memory_mb: Largest resident memory of this process, MB.
        teachers: Whom the student imitates.
        warnings: What was warned about.
    """

    student: str
    steps: int
    resumed_from: int
    held_out_cosine: float | None
    images_per_s: float | None
    waiting_share: float | None
    peak_memory_mb: float
    teachers: tuple[ModelProvenance, ...]
    warnings: tuple[str, ...]


def run_folder(out: Path) -> Path:
    """Where checkpoint and metrics of an unfinished run lie: beside the student's folder."""
    return out.parent / f"{out.name}.run"


def distill(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    warn: Callable[[str], None] = lambda _: None,
    progress: Callable[[Any], None] | None = None,
) -> Report:
    """Train a student and write its folder; a run that was killed goes on.

    Args:
        config: Options.
        overwrite: Replace an existing student, and start anew even where a checkpoint lies.
        warn: Called with each warning.
        progress: Called now and then with `train.Progress`.

    Raises:
        UsageError: The options contradict each other, a cache, or the run that lies there.
        InputError: Tiles, teacher, or checkpoint cannot be read.
    """
    from atlas_edge.distill.training.loop import train

    check_vacant(config.out, marks=STUDENT_FILES, overwrite=overwrite)
    run = run_folder(config.out)
    if overwrite:
        (run / NAME).unlink(missing_ok=True)
    tiles = training_tiles(config)
    with memory_explained("while models were opened", hint=stored_features(config)):
        stream = open_stream(config, tiles)
        held_out = held_out_tiles(config, stream)
    warnings = _warnings(config, stream)
    for text in warnings:
        warn(text)
    run.mkdir(parents=True, exist_ok=True)
    trained = train(config, stream, run, held_out=held_out, progress=progress)
    rows = read_metrics(run) if trained.main else []
    looks = [row["held_out_cosine"] for row in rows if row["held_out_cosine"] is not None]
    report = Report(
        student=str(config.out),
        steps=config.steps,
        resumed_from=trained.resumed_from,
        held_out_cosine=looks[-1] if looks else None,
        images_per_s=float(np.median([row["images_per_s"] for row in rows])) if rows else None,
        waiting_share=float(np.median([row["waiting_share"] for row in rows])) if rows else None,
        peak_memory_mb=peak_memory_bytes() / 1e6,
        teachers=tuple(target.teacher for target in stream.targets),
        warnings=warnings,
    )
    if trained.main:
        _write(config, run, trained, tiles, report, rows, licence=student_licence(stream), overwrite=overwrite)
        # All that is worth keeping of it lies in the student's folder now.
        _remove_run(run)
    return report


def _warnings(config: TrainConfig, stream: ViewStream) -> tuple[str, ...]:
    models = (*(target.teacher for target in stream.targets), *stream.origins)
    found = [text for text in map(licence_warning, models) if text is not None]
    without = [target.teacher.name for target in stream.targets if target.grid is None]
    if config.patch_weight and without:
        found.append(f"{' and '.join(without)} teaches no patch tokens: its features hold none")
    if imitated(own_device(), config.precision):
        found.append(IMITATED)
    return tuple(dict.fromkeys(found))


def student_licence(stream: ViewStream) -> str:
    """The strictest licence of teachers, first weights, and tiles; tiles that state none are their owner's matter."""
    models = [target.teacher.licence for target in stream.targets] + [origin.licence for origin in stream.origins]
    tiles = [entry.licence for entry in stream.tiles.provenance() if entry.licence is not None]
    return strictest_licence([*models, *tiles])


def training_tiles(config: TrainConfig) -> TrainingTiles:
    """The tile sets and slides of a configuration; slides are cut at the student's size."""
    from atlas_edge.distill.training.student import student_of

    slides = any(slide_spec(spec) is not None for spec in config.tiles)
    tile_px = student_of(config)[1].tile_px if slides else 224
    return open_training_tiles(config.tiles, tile_px=tile_px)


def open_stream(config: TrainConfig, tiles: TrainingTiles) -> ViewStream:
    """Teachers (cached or running), and the views that they are asked about.

    Raises:
        UsageError: Teachers, caches, student and options do not go together.
        InputError: A teacher or cache cannot be read.
    """
    from atlas_edge.distill.training.student import embed_dim, first_weights, patch_grid, student_of

    backbone, architecture = student_of(config)
    dim = embed_dim(backbone, architecture.pooling)
    if max(config.matryoshka, default=0) > dim:
        raise UsageError(
            f"--matryoshka {max(config.matryoshka)} is more than the {dim} dimensions of {config.student}",
            hint="name prefixes of its embedding",
        )
    grid = patch_grid(backbone) if config.patch_weight else None
    caches = {
        name: FeatureCache(Path(name), tiles) for name in config.teachers if (Path(name) / "cache.json").is_file()
    }
    seeds, stored = tuple(range(config.views)), Augmentation.named(config.stored)
    for name, cache in caches.items():
        _check_views(name, cache.index, grid=grid, tile_px=architecture.tile_px)
        if cache.index.drawn != (first := next(iter(caches.values())).index).drawn:
            raise UsageError(
                f"the caches hold different views of the tiles (seeds {first.seeds} and {cache.index.seeds})",
                hint="make them with the same --views and --augmentation",
            )
        seeds, stored = cache.index.seeds, Augmentation(**cache.index.augmentation)
    targets: list[Targets] = [
        CachedTargets(caches[name]) if name in caches else OnlineTargets(_teacher(config, name), grid=grid)
        for name in config.teachers
    ]
    if grid is not None and all(target.grid is None for target in targets):
        raise UsageError(
            f"no teacher gives patch tokens, and --patch-weight {config.patch_weight:g} asks for them",
            hint=f"compute the features with atlas-distill cache … --grid {grid}, or train with --patch-weight 0",
        )
    order = (
        BalancedOrder(tiles.slides(), seeds=len(seeds), seed=config.seed)
        if config.balance == "slides"
        else EvenOrder(len(tiles) * len(seeds), config.seed)
    )
    return ViewStream(
        tiles=tiles,
        targets=tuple(targets),
        origins=first_weights(config),
        seeds=seeds,
        stored=stored,
        fresh=Augmentation.named(config.fresh),
        fresh_share=config.fresh_share,
        tile_px=architecture.tile_px,
        batch=config.batch,
        seed=config.seed,
        order=order,
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
    )


def _teacher(config: TrainConfig, name: str) -> Teacher:
    return open_teacher(name, half=config.precision != "fp32")


def _check_views(name: str, index: CacheIndex, *, grid: int | None, tile_px: int) -> None:
    if grid is not None and index.grid is not None and index.grid != grid:
        raise UsageError(
            f"{name} has a {index.grid} x {index.grid} patch grid, the student {grid} x {grid}",
            hint=f"make it with --grid {grid}",
        )
    if index.tile_px != tile_px:
        raise UsageError(
            f"{name} holds views of {index.tile_px} px, the student takes {tile_px}",
            hint=f"make it with --tile-px {tile_px}",
        )


def held_out_tiles(config: TrainConfig, stream: ViewStream) -> Any:
    """Held-out tiles with the first teacher's CLS features; None where none are given or another process looks."""
    if config.held_out is None or (stream.rank and not sharding_wanted()):
        return None
    from atlas_edge.bench.accuracy.tileset import pick_tiles
    from atlas_edge.distill.training.held_out import HeldOut
    from atlas_edge.tiles import open_tiles

    name = config.teachers[0]
    if (Path(name) / "cache.json").is_file():
        if config.init_from is None:
            raise UsageError("--held-out needs the teacher itself, not only its cache", hint="add --init-from TEACHER")
        name = config.init_from
    picked = pick_tiles(open_tiles(config.held_out, role="evaluation"), limit=_HELD_OUT_TILES, fit="resize")
    stream.tiles.check_disjoint(picked.source, picked.records)
    pixels, teacher = picked.pixels(stream.tile_px), _teacher(config, name)
    found = [teacher.features(pixels[start : start + 16], grid=None).cls.cpu() for start in range(0, len(pixels), 16)]
    labels = None if picked.labels is None else np.array(picked.labels)
    return HeldOut(
        tiles=pixels, features=np.concatenate(found), labels=labels, centers=picked.centers, groups=picked.groups
    )


def _write(
    config: TrainConfig,
    run: Path,
    trained: Any,
    tiles: TrainingTiles,
    report: Report,
    rows: list[dict[str, Any]],
    *,
    licence: str,
    overwrite: bool,
) -> None:
    from atlas_edge.distill.reporting.plots import loss_plot
    from atlas_edge.distill.training.student import save_student

    architecture = trained.architecture.of_tiles(tiles.mpp_range)
    with atomic_folder(config.out, marks=STUDENT_FILES, overwrite=overwrite) as folder:
        save_student(folder, trained.weights, architecture, licence=licence, half=config.half)
        record = {"config": config.for_report(), **_jsonable(report), "student": config.out.name}
        shown = config.shown_tiles(tiles.provenance())
        record["tiles"] = [entry.model_dump() for entry in shown]
        (folder / "report.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(run / "metrics.csv", folder / "metrics.csv")
        if (run / "tensorboard").is_dir():
            shutil.copytree(run / "tensorboard", folder / "tensorboard")
        loss_plot(rows, folder / "loss.png")
        card = student_card(config, report, shown, rows, licence=licence, architecture=architecture)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _remove_run(run: Path) -> None:
    """Remove what training wrote, and the folder unless something else lies in it."""
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    with suppress(OSError):
        for name in (NAME, "metrics.csv", *RUN_IDS):
            (run / name).unlink(missing_ok=True)
        run.rmdir()


def _jsonable(report: Report) -> dict[str, Any]:
    data = asdict(report)
    data["teachers"] = [teacher.model_dump() for teacher in report.teachers]
    return data
