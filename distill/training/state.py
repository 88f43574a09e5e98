"""State of a training run: made fresh, inherited from a teacher, or read from a killed run's checkpoint."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_edge.distill.data.stream import ViewStream
from atlas_edge.distill.targets.heads import look_over
from atlas_edge.distill.targets.phis import TargetTransform
from atlas_edge.distill.training.checkpoint import NAME, load_checkpoint, load_extra, save_checkpoint
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.device import autocast, own_device
from atlas_edge.distill.training.held_out import normalised
from atlas_edge.distill.training.out_of_memory import memory_explained
from atlas_edge.distill.training.sharding import whole
from atlas_edge.distill.training.student import (
    Architecture,
    Distiller,
    Fitted,
    inherit_from,
    make_heads,
    pooled,
    student_folder,
    student_of,
)
from atlas_edge.system.hardware import cpu

# What a scaler learns; the rest of its state are constants.
_SCALED = ("scale", "_growth_tracker")
# Views that are looked at before the first step.
_STATISTICS_VIEWS = 2048


@dataclass(slots=True, kw_only=True)
class State:
    """All that a step changes or needs.

    Attributes:
        model: Student and heads.
        architecture: Of the student.
        optimiser: AdamW.
        average: Averaged weights of the model.
        transforms: Target transforms of CLS and patch tokens, one pair a teacher.
        scaler: Of the loss, with `--precision fp16`; otherwise it leaves all as it is.
        step: Steps done.
        identity: What must be the same when the run goes on: options, and the content of what they name.
        sharded: Whether this process holds its part of weights, moments and average only (see `sharding`).
    """

    model: Distiller
    architecture: Architecture
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    transforms: list[tuple[TargetTransform, TargetTransform | None]]
    scaler: torch.amp.GradScaler
    step: int
    identity: dict[str, object]
    sharded: bool = False

    def to(self, device: torch.device) -> None:
        """Move weights, average and optimiser state."""
        self.model.to(device)
        self.average = {name: value.to(device) for name, value in self.average.items()}
        # Loading a state moves it to its parameters' device.
        self.optimiser.load_state_dict(self.optimiser.state_dict())

    def save(self, run: Path, *, main: bool = True) -> None:
        """Write the checkpoint.

        Every process of a sharded run calls it, since it gathers the parts; only the main one writes.
        """
        tensors = self.tensors()
        if self.sharded:
            tensors = whole(tensors, keep=main)
        if main:
            save_checkpoint(run, tensors, step=self.step, identity=self.identity)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by the names that it has there."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for number, entry in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in entry.items()}
        if self.scaler.is_enabled():
            found = self.scaler.state_dict()
            tensors |= {f"extra.scaler.{name}": torch.tensor(found[name], dtype=torch.float64) for name in _SCALED}
        for number, pair in enumerate(self.transforms):
            for kind, transform in zip(("cls", "patches"), pair, strict=True):
                if transform is not None:
                    tensors[f"extra.{number}.{kind}.matrix"] = torch.from_numpy(transform.matrix)
                    tensors[f"extra.{number}.{kind}.mean"] = torch.from_numpy(transform.mean)
        return tensors


def start(
    config: TrainConfig,
    stream: ViewStream,
    run: Path,
    *,
    statistics_views: int = _STATISTICS_VIEWS,
    on_host: bool = False,
) -> State:
    """A fresh run's state, or that of the one in the folder."""
    torch.manual_seed(config.seed)
    backbone, architecture = student_of(config)
    device = own_device()
    if device.type == "cpu":
        _attend_by_products(backbone)
    going_on = (run / NAME).is_file()
    identity = _identity(config, stream)
    look = None
    if not going_on:
        if config.init == "teacher":
            fit_to_teacher(config, stream, backbone, architecture)
        pretrained = config.init == "teacher" or student_folder(config.student) is not None
        student = _features(config, backbone, architecture) if pretrained and config.fit_heads else None
        look = look_over(stream, statistics_views, patches=config.patch_weight > 0, student=student)
        if on_host:
            backbone.cpu()
    transforms = _stored_transforms(run) if look is None else look.transforms(normalise=config.phi_s)
    heads = make_heads(backbone, transforms, kind=config.head, pooling=architecture.pooling)
    if look is not None:
        look.fit(heads, transforms)
    model = Distiller(backbone, heads, architecture.pooling)
    groups = parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    step = 0
    if going_on:
        step, average = load_checkpoint(run, model, optimiser, identity=identity)
        if scaler.is_enabled():
            learned, fresh = load_extra(run), scaler.state_dict()
            scaler.load_state_dict(
                fresh | {name: type(fresh[name])(learned[f"scaler.{name}"].item()) for name in _SCALED}
            )
    state = State(
        model=model,
        architecture=architecture,
        optimiser=optimiser,
        average=average,
        transforms=transforms,
        scaler=scaler,
        step=step,
        identity=identity,
    )
    if not on_host:
        state.to(device)
    return state


def _identity(config: TrainConfig, stream: ViewStream) -> dict[str, object]:
    found = config.same_run()
    found["order of views"] = "keyed"
    found["content of --tiles"] = stream.tiles.fingerprint()
    for name, target in zip(config.teachers, stream.targets, strict=True):
        found[f"content of {name}"] = target.fingerprint
    for origin in stream.origins:
        found[f"content of {origin.name}, the student's first weights"] = origin.sha256
    return found


def _attend_by_products(backbone: nn.Module) -> None:
    # PyTorch's fused attention saves memory on a CPU, not time: in bfloat16 its backward pass took a quarter of a
    # ViT-Ti's step, and plain products made the step 1.2 to 1.3 times as fast.
    for module in backbone.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _features(
    config: TrainConfig, backbone: nn.Module, architecture: Architecture
) -> Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]]:
    """The student before the first step: embeddings `(B, D)` and patch tokens `(B, grid², width)` of some tiles."""
    device = own_device()
    backbone.to(device)

    def compute(pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        images = normalised(pixels, architecture).to(device)
        with torch.no_grad(), autocast(device, config.precision):
            tokens: Tensor = backbone.eval().forward_features(images)
        backbone.train()
        tokens, prefix = tokens.float().cpu(), int(backbone.num_prefix_tokens)
        return pooled(tokens, prefix, architecture.pooling), tokens[:, prefix:]

    return compute


def _stored_transforms(run: Path) -> list[tuple[TargetTransform, TargetTransform | None]]:
    extra = load_extra(run)

    def read(number: int, kind: str) -> TargetTransform | None:
        matrix = extra.get(f"{number}.{kind}.matrix")
        if matrix is None:
            return None
        return TargetTransform(matrix=matrix.numpy(), mean=extra[f"{number}.{kind}.mean"].numpy())

    pairs: list[tuple[TargetTransform, TargetTransform | None]] = []
    for number in itertools.count():
        cls = read(number, "cls")
        if cls is None:
            return pairs
        pairs.append((cls, read(number, "patches")))
    raise AssertionError


def fit_to_teacher(config: TrainConfig, stream: ViewStream, backbone: nn.Module, architecture: Architecture) -> Fitted:
    """Give a student the weights that a configuration's `init` options ask for.

    Raises:
        RuntimeMissing: Memory ran out.
    """
    with memory_explained(
        f"in the fit to {config.init_tiles} views", hint=f"use --init-tiles {max(config.init_tiles // 2, 2)}"
    ):
        shown, fresh = stream.sample_views(config.init_tiles)
        return inherit_from(
            config.init_from or config.teachers[0],
            backbone,
            architecture,
            student_views=fresh,
            teacher_views=shown,
            half=config.precision != "fp32" and cpu().bfloat16,
            whitening=config.whitening,
            rounded=config.init_rounded,
        )


def parameter_groups(model: Distiller, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """What the optimiser steps, as groups with `weight_decay` and `lr_scale`.

    Matrices are decayed, other parameters are not. A block's learning rate is `layer_decay` times that of the block
    after it, that of patch and position embeddings `layer_decay` times the first block's; last norm and heads have the
    whole one (Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, arXiv:2106.08254, section 3.2).
    """
    blocks = len(model.backbone.blocks)
    groups: dict[tuple[bool, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and not name.endswith(("pos_embed", "cls_token", "reg_token"))
        groups.setdefault((not matrix, layer_decay ** _blocks_after(name, blocks)), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay, "lr_scale": key[1]}
        for key in sorted(groups)
    ]


def _blocks_after(name: str, blocks: int) -> int:
    """How many steps a parameter is away from the network's end."""
    part, _, rest = name.removeprefix("backbone.").partition(".")
    if not name.startswith("backbone.") or part in ("norm", "fc_norm"):
        return 0
    return blocks - int(rest.partition(".")[0]) if part == "blocks" else blocks + 1
