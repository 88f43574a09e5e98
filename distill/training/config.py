"""Everything that shapes a training run; the resolved copy goes into the student's folder."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from cyclopts import Parameter

from atlas_edge.options import Flag, Many, Options

if TYPE_CHECKING:
    from atlas_edge.manifest import TilesProvenance

AugmentationName = Literal["none", "geometry", "weak", "strong"]
HeadName = Literal["linear", "mlp"]
LossName = Literal["cosine", "l1"]
TrackerName = Literal["mlflow", "wandb"]
PresetName = Literal["smoke", "day", "week"]
# By which a student's folder is known.
STUDENT_FILES = ("config.json", "report.json")


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """What a fit in closed form reads, and training, too.

    Attributes:
        out: Folder of the student.
        student: Registry name, timm architecture, or folder of a ViT with the teacher's head size and no more blocks.
        patch: Patch side of atlas2-s or atlas2-b, pixels: 14, 16, or 8, which has rotary positions and 8 registers.
        registers: Register tokens of a registry student.
        pooling: How the student embeds: by its CLS token, or that beside the mean patch token; its own when left out.
        init_tiles: Views used for the fit in closed form, spread over all views of all tiles.
        whitening: How far that fit evens out the CLS embedding's channels: 0 turns and centres them, 1 gives them equal
            deviations.
        init_rounded: Fit to inputs and weights rounded as INT8 rounds them, which helps a fit to few views.
        views: Stored views of each tile; a cache knows its own.
        stored: Augmentation that teacher and student see; a cache knows its own.
        fresh: Augmentation that only the student sees.
        precision: Autocast of the networks. A processor without bfloat16 computes in float32; fp16, with a scaled loss,
            is for GPUs older than bfloat16.
        seed: Seed of every random choice.
        threads: PyTorch's threads.
        half: Save float16 weights: enough to embed with; leave it out where training follows.
        keep_paths: Write paths, and the names of tile sets, into report and card. They are left out otherwise: in a
            hospital they name patients.
    """

    out: Path
    student: str = "vit_tiny_patch16_224"
    patch: int | None = None
    registers: int | None = None
    pooling: Literal["cls", "cls+mean"] | None = None
    init_tiles: Annotated[int, Ge(2)] = 384
    whitening: Annotated[float, Ge(0), Le(1)] = 0.5
    init_rounded: Flag = False
    views: Annotated[int, Ge(1)] = 4
    stored: AugmentationName = "weak"
    fresh: AugmentationName = "strong"
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    seed: Annotated[int, Ge(0)] = 0
    threads: Annotated[int | None, Ge(1)] = None
    half: Flag = False
    keep_paths: Flag = False


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FitOptions):
    """What training reads.

    Attributes:
        tiles: Tile sets (those with splits give train) and slides: scan.svs@0.5,1 for two µm per pixel, @0.25-2 for all
            between.
        student: Registry name, timm architecture, or a folder to go on from (./NAME where it has a registry name).
        init: First weights: fitted to the first ViT teacher in closed form, or random.
        init_from: Folder of the ViT to inherit from, where the teacher is a cache.
        head: From the student's tokens to each teacher's: a linear map, or one with a hidden layer beside it.
        fit_heads: Begin with heads fitted on some 2,000 views, where the student's weights are not random.
        steps: Optimiser steps.
        batch: Views a step, over all processes.
        accumulate: Parts that a step is computed in, one after the other, for a batch that the memory does not hold;
            --relational-weight compares the views of a part.
        lr: Peak learning rate.
        warmup: Steps of linear warm-up; a cosine follows, down to a hundredth of --lr.
        layer_decay: Factor on the learning rate from each block to the one before it, for a student whose first weights
            are good already; 1 trains all alike.
        weight_decay: AdamW's weight decay, on matrices only.
        rounded_share: Share of the steps, the last ones, in which inputs and weights of Linear layers are rounded as
            INT8 rounds them.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are what is saved; 0 saves the last.
        loss: 0.9 cosine + 0.1 smooth-L1, or L1 alone.
        phi_s: Normalise targets by PHI-S.
        patch_weight: Weight of the patch-token loss; 0 asks for CLS tokens only.
        relational_weight: Weight of the similarity-matrix loss.
        matryoshka: Embedding prefixes that must be useful alone, dimensions.
        fresh_share: Share of views that get it.
        balance: What comes equally often: tiles, or slides, of which large ones have many tiles.
        workers: Decoding threads.
        checkpoint_every: Steps between checkpoints.
        evaluate_every: Steps between looks at the held-out tiles.
        held_out: Tile set for those looks, none of which the student learns from.
        log_to: Also log the run to MLflow or wandb, each as its own environment variables set it up.
        half: Save float16 weights.
    """

    tiles: Annotated[Many, MinLen(1)]
    student: str = "atlas2-s"
    init: Literal["teacher", "random"] = "random"
    init_from: str | None = None
    head: HeadName = "linear"
    fit_heads: bool = True
    steps: Annotated[int, Ge(1)] = 2_000
    batch: Annotated[int, Ge(1)] = 32
    accumulate: Annotated[int, Ge(1)] = 1
    lr: Annotated[float, Gt(0)] = 1e-4
    warmup: Annotated[int, Ge(0)] = 100
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    weight_decay: Annotated[float, Ge(0)] = 0.05
    rounded_share: Annotated[float, Ge(0), Le(1)] = 0.0
    clip: Annotated[float, Gt(0)] = 1.0
    ema: Annotated[float, Ge(0), Lt(1)] = 0.998
    loss: LossName = "cosine"
    phi_s: bool = True
    patch_weight: Annotated[float, Ge(0)] = 1.0
    relational_weight: Annotated[float, Ge(0)] = 0.0
    matryoshka: Annotated[tuple[Annotated[int, Ge(1)], ...], Parameter(negative="", consume_multiple=True)] = ()
    fresh_share: Annotated[float, Ge(0), Le(1)] = 0.5
    balance: Literal["tiles", "slides"] = "tiles"
    workers: Annotated[int, Ge(1)] = 1
    checkpoint_every: Annotated[int, Ge(1)] = 100
    evaluate_every: Annotated[int, Ge(1)] = 100
    held_out: str | None = None
    log_to: TrackerName | None = None
    half: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainOptions):
    """Configuration of `atlas-distill`.

    Attributes:
        teachers: Teacher folders, `hf-hub:` names, or folders of cached features.
    """

    teachers: Annotated[tuple[str, ...], MinLen(1)]

    def is_rounded(self, step: int) -> bool:
        """Whether a step is among the last ones, in which the student computes as INT8 does."""
        return step >= self.steps - round(self.rounded_share * self.steps)

    def same_run(self) -> dict[str, object]:
        """What must not change between a run and its continuation."""
        free = {
            "out",
            "threads",
            "accumulate",
            "workers",
            "checkpoint_every",
            "held_out",
            "evaluate_every",
            "log_to",
            "half",
            "keep_paths",
        }
        return self.as_json(exclude=free)

    def for_report(self, *, only: Collection[str] | None = None) -> dict[str, Any]:
        """Options as they stand in a student's folder, which is handed on.

        Unless `keep_paths`, models go by their last name, and tile sets, which patients give their names, by none.
        """
        from atlas_edge.unnamed import LEFT_OUT, last_name

        found = self.as_json(include=only)
        if self.keep_paths:
            return found
        for name in found.keys() & {"teachers", "tiles", "out", "student", "init_from", "held_out"}:
            value, hidden = found[name], name in ("tiles", "held_out")
            if value is not None:
                shown = [
                    LEFT_OUT if hidden else last_name(one) for one in ([value] if isinstance(value, str) else value)
                ]
                found[name] = shown[0] if isinstance(value, str) else shown
        return found

    def shown_tiles(self, tiles: Sequence["TilesProvenance"]) -> tuple["TilesProvenance", ...]:
        """What a student's folder says of tile sets: without `keep_paths` their kind and fingerprint, no name."""
        from atlas_edge.unnamed import unnamed_tiles

        if self.keep_paths:
            return tuple(tiles)
        return tuple(shown for shown in map(unnamed_tiles, tiles) if shown is not None)
