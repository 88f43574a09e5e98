"""The training loop: one command for one process or many (`accelerate launch`), resumable step for step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atlas_edge.distill.data.stream import TrainingBatch, ViewStream
from atlas_edge.distill.rounding import rounding
from atlas_edge.distill.targets.losses import feature_loss, nested_loss, relational_loss
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.device import autocast, own_device
from atlas_edge.distill.training.held_out import HeldOut, held_out_figures, normalised
from atlas_edge.distill.training.metrics import MetricsLog
from atlas_edge.distill.training.out_of_memory import memory_explained, more_parts, smaller_batch, stored_features
from atlas_edge.distill.training.sharding import agree, shard, sharding_wanted, whole
from atlas_edge.distill.training.state import State, start
from atlas_edge.distill.training.student import Architecture
from atlas_edge.distill.training.trackers import open_trackers
from atlas_edge.errors import InputError, UsageError

_LOG_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the display shows after a step."""

    step: int
    steps: int
    loss: float
    images_per_s: float
    held_out_cosine: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of a run.

    Attributes:
        weights: Of the backbone, averaged over the run's last steps; empty in a sharded run's other processes.
        architecture: Of the student.
        resumed_from: Steps that an earlier process had done.
        main: Whether this process writes the result.
    """

    weights: dict[str, Tensor]
    architecture: Architecture
    resumed_from: int
    main: bool


def train(
    config: TrainConfig,
    stream: ViewStream,
    run: Path,
    *,
    held_out: HeldOut | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a student, or go on with a run that was killed.

    Args:
        config: Options.
        stream: Batches.
        run: Folder of checkpoint and metrics.
        held_out: Tiles to look at now and then.
        progress: Called now and then.

    Raises:
        UsageError: The loss became infinite or NaN, or the run in the folder has other options.
        RuntimeMissing: Memory ran out.
        InputError: The checkpoint cannot be read or written.
    """
    if config.batch // stream.world < config.accumulate:
        raise UsageError(
            f"--accumulate {config.accumulate}: a step has {config.batch // stream.world} views a process",
            hint="lower it",
        )
    sharded = sharding_wanted()
    accelerator = _accelerator()
    if config.threads is not None:
        # After Accelerate, which sets the number for itself where it starts.
        torch.set_num_threads(config.threads)
    with memory_explained("before the first step", hint=stored_features(config)):
        state = start(config, stream, run, on_host=sharded)
    if accelerator is not None:
        agree(state, accelerator.device)
        if sharded:
            if config.precision == "fp16":
                raise UsageError("a sharded run has no scaled loss", hint="use --precision bf16, or fp32")
            shard(state, accelerator.device)
        else:
            state.to(accelerator.device)
        accelerator.wait_for_everyone()
    main = accelerator is None or accelerator.is_main_process
    resumed_from = state.step
    rows: AbstractContextManager[MetricsLog | None] = (
        closing(_metrics_log(config, run, state.step)) if main else nullcontext()
    )
    with closing(stream.run(state.step, config.steps, threads=config.workers)) as batches, rows as log:
        # Each look and checkpoint needs every process's part of a sharded state.
        reporter = _Reporter(run, log, held_out, progress) if main or sharded else None
        _run(config, state, accelerator, batches, reporter)
    average = whole(state.average, keep=main) if sharded else state.average
    weights = {name.removeprefix("backbone."): value for name, value in average.items() if name.startswith("backbone.")}
    return Trained(weights=weights, architecture=state.architecture, resumed_from=resumed_from, main=main)


def _metrics_log(config: TrainConfig, run: Path, step: int) -> MetricsLog:
    options = config.for_report()
    trackers = open_trackers(run, name=config.out.name, step=step, asked=config.log_to, options=options)
    return MetricsLog(run, step=step, trackers=trackers)


def _run(
    config: TrainConfig,
    state: "State",
    accelerator: Any,
    batches: Iterable[TrainingBatch],
    reporter: "_Reporter | None",
) -> None:
    """All steps."""
    clock = _Clock()
    for batch in clock.waiting_for(_explained(config, batches)):
        hint = more_parts(config, len(batch.pixels))
        with memory_explained(f"at step {batch.step} with --batch {config.batch}", hint=hint):
            row = train_step(config, state, accelerator, batch)
            clock.images += config.batch
            if reporter is not None:
                reporter.after_step(config, state, row, clock)


class _Reporter:
    """What is done beside training: held-out figures, rows, display, checkpoints.

    Rows are logged and files written where there is a log: in the main process.
    """

    def __init__(
        self, run: Path, log: MetricsLog | None, held_out: HeldOut | None, progress: Callable[[Progress], None] | None
    ) -> None:
        self._run, self._log, self._held_out, self._progress = run, log, held_out, progress
        self._cosine: float | None = None

    def after_step(self, config: TrainConfig, state: "State", row: dict[str, Any], clock: "_Clock") -> None:
        step, last = state.step, state.step == config.steps
        looked = self._held_out is not None and (step % config.evaluate_every == 0 or last)
        if looked and self._held_out is not None:
            row |= _look(state, self._held_out)
            self._cosine = row["held_out_cosine"]
        if self._log is not None and (looked or last or step == 1 or step % _LOG_EVERY == 0):
            row |= clock.figures()
            self._log.add(row)
            if self._progress is not None:
                self._progress(
                    Progress(
                        step=step,
                        steps=config.steps,
                        loss=row["loss"],
                        images_per_s=row["images_per_s"],
                        held_out_cosine=self._cosine,
                    )
                )
        if last or step % config.checkpoint_every == 0:
            with _room_for(state, self._run):
                state.save(self._run, main=self._log is not None)


def train_step(config: TrainConfig, state: State, accelerator: Any, batch: TrainingBatch) -> dict[str, Any]:
    """One optimiser step; returns its row of `metrics.csv`.

    Raises:
        UsageError: The loss became infinite or NaN, in whichever process.
    """
    lr = learning_rate(config, batch.step)
    for group in state.optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]
    device = next(state.model.parameters()).device
    terms = []
    for part in batch.parts(config.accumulate):
        images = normalised(part.pixels, state.architecture).to(device)
        with autocast(device, config.precision), rounding(wanted=config.is_rounded(batch.step)):
            tokens = state.model(images)
        found = _loss(config, state, tokens.float(), part)
        share = len(part.pixels) / len(batch.pixels)
        state.scaler.scale(share * found[0]).backward()
        terms.append(share * torch.stack([term.detach() for term in found]))
    loss, cls_loss, *patch_loss = torch.stack(terms).sum(0)
    # The mean over the processes is not finite where one is not: all of them stop.
    value = float(loss if accelerator is None else accelerator.reduce(loss, reduction="mean"))
    if not math.isfinite(value):
        raise UsageError(
            f"the loss became {value} at step {batch.step}",
            hint="lower --lr or use --precision fp32; the run goes on from its last checkpoint",
        )
    if accelerator is not None and not state.sharded:
        _average_gradients(state.model, accelerator)
    state.scaler.unscale_(state.optimiser)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    if state.sharded:
        norm = norm.full_tensor()
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.optimiser.zero_grad(set_to_none=True)
    state.step = batch.step + 1
    _average(state, config.ema)
    return {
        "step": state.step,
        "loss": value,
        "cls_loss": float(cls_loss),
        "patch_loss": float(patch_loss[0]) if patch_loss else None,
        "lr": lr,
        "gradient_norm": float(norm),
    }


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak (Loshchilov & Hutter, SGDR, ICLR 2017)."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done)))


def _loss(config: TrainConfig, state: State, tokens: Tensor, batch: TrainingBatch) -> tuple[Tensor, ...]:
    """The loss, its term of CLS tokens, and that of patch tokens where there is one."""
    prefix = state.model.prefix_tokens
    embedding = state.model.embed(tokens)
    cls_losses, patch_losses, relational_losses = [], [], []
    for head, features in zip(state.model.heads, batch.features, strict=True):
        target = head.cls_target(features.cls)
        cls_losses.append(nested_loss(head.cls, embedding, target, config.matryoshka, config.loss))
        if config.relational_weight:
            relational_losses.append(relational_loss(embedding, target))
        if head.patches is not None and features.patches is not None:
            wanted = head.patch_target(features.patches)
            patch_losses.append(feature_loss(head.patches(tokens[:, prefix:]), wanted, config.loss))
    # Each term is a mean over the teachers, so that its weight means the same for any number of them.
    loss = cls_loss = torch.stack(cls_losses).mean()
    if relational_losses:
        loss = loss + config.relational_weight * torch.stack(relational_losses).mean()
    patch_loss = torch.stack(patch_losses).mean() if patch_losses else None
    if patch_loss is not None:
        loss = loss + config.patch_weight * patch_loss
    return (loss, cls_loss) if patch_loss is None else (loss, cls_loss, patch_loss)


def _average(state: State, decay: float) -> None:
    # Early on the average forgets faster, so that it is not held back by the first weights (Adam's bias correction,
    # in effect).
    keep = min(decay, state.step / (state.step + 10)) if decay else 0.0
    with torch.no_grad():
        for name, value in state.model.state_dict().items():
            state.average[name].lerp_(value.to(state.average[name].device), 1.0 - keep)


def _average_gradients(model: nn.Module, accelerator: Any) -> None:
    """Mean over the processes, in one reduction: a student is small, so overlap with the backward pass gains little."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _look(state: State, held_out: HeldOut) -> dict[str, float | None]:
    """Figures of the averaged weights."""
    current = {name: value.clone() for name, value in state.model.state_dict().items()}
    state.model.load_state_dict(state.average)
    figures: dict[str, float | None] = held_out_figures(state.model, held_out, state.architecture)
    state.model.load_state_dict(current)
    return figures


def _accelerator() -> Any:
    """Accelerate's handle where several processes were launched; None in a run of one."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=own_device().type == "cpu")


class _Clock:
    """Images a second since the last row, and the share of the time that the student waited for data."""

    def __init__(self) -> None:
        self.images = 0
        self._waited_s, self._since = 0.0, time.perf_counter()

    def waiting_for(self, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - start
            yield batch

    def figures(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        result = {"images_per_s": self.images / elapsed, "waiting_share": self._waited_s / elapsed}
        self.images, self._waited_s, self._since = 0, 0.0, time.perf_counter()
        return result


def _explained(config: TrainConfig, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
    """Batches, whose threads also run the teachers that are not cached."""
    iterator = iter(batches)
    while True:
        with memory_explained(
            f"in the threads that read tiles and run teachers, with --batch {config.batch} and --workers "
            f"{config.workers}",
            hint=f"{stored_features(config)}; or {smaller_batch(config)}",
        ):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _room_for(state: State, run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Weights, their average, and AdamW's two moments.
        megabytes = 4 * sum(value.nbytes for value in state.average.values()) / 1e6
        raise InputError(
            f"the checkpoint of step {state.step} could not be written to {run}: {error.strerror or error}",
            hint=f"free {2 * megabytes:.0f} MB there (the one before stays until the new one is whole) and give the "
            "same command again: it goes on from the last checkpoint",
        ) from error
