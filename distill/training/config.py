"""Everything that shapes a training run; the resolved copy goes into the student's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_edge.distill.targets.losses import LossName
from atlas_edge.manifest import TilesProvenance
from atlas_edge.unnamed import LEFT_OUT, last_name, unnamed_tiles

AugmentationName = Literal["none", "geometry", "weak", "strong"]
# By which a student's folder is known.
STUDENT_FILES = ("config.json", "report.json")


class TrainConfig(BaseModel):
    """Configuration of `atlas-distill`.

    Attributes:
        teachers: Teacher folders, `hf-hub:` names, or folders of cached features.
        tiles: Tile sets; those with splits give `train`.
        out: Folder of the student.
        student: Registry name, timm architecture, or a folder to go on from.
        init: `teacher` fits the first weights to the first ViT teacher in closed form, `random` draws them.
        init_from: Folder of the ViT to inherit from, where the teacher is a cache; the first teacher when None.
        init_tiles: Views used for that fit.
        whitening: How far that fit evens out the CLS embedding's channels: 0 turns and centres them, 1 gives them
            equal deviations.
        fit_heads: Begin with heads fitted on at most 2,048 stored views, where the student's weights are not random.
        steps: Optimiser steps.
        batch: Views a step, over all processes.
        lr: Peak learning rate.
        warmup: Steps of linear warm-up; a cosine follows, down to a hundredth of `lr`.
        weight_decay: AdamW's, on matrices only.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are what is saved; 0 saves the last.
        loss: `cosine` (0.9 · cosine + 0.1 · smooth-L1) or `l1`.
        phi_s: Normalise targets by PHI-S.
        patch_weight: Weight of the patch-token loss; 0 asks for CLS tokens only.
        relational_weight: Weight of the similarity-matrix loss.
        matryoshka: Embedding prefixes that must be useful alone.
        views: Stored views of each tile (seeds 0 … views - 1), where no cache says it.
        stored: Augmentation that teacher and student see, where no cache says it.
        fresh: Augmentation that only the student sees.
        fresh_share: Share of views that get it.
        precision: `bf16` autocast or `fp32`.
        seed: Of order, fresh views, and random weights.
        threads: PyTorch's threads; its own choice when None.
        workers: Decoding threads.
        checkpoint_every: Steps between checkpoints.
        evaluate_every: Steps between looks at the held-out tiles.
        held_out: Tile set for those looks; its test split where it has one.
        half: Save float16 weights.
        keep_paths: Whether the student's folder says how folders and tile sets are called here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teachers: tuple[str, ...] = Field(min_length=1)
    tiles: tuple[str, ...] = Field(min_length=1)
    out: Path
    student: str = "atlas2-s"
    init: Literal["teacher", "random"] = "random"
    init_from: str | None = None
    init_tiles: int = Field(default=384, ge=2)
    whitening: float = Field(default=0.5, ge=0, le=1)
    fit_heads: bool = True
    steps: int = Field(default=2_000, ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    loss: LossName = "cosine"
    phi_s: bool = True
    patch_weight: float = Field(default=1.0, ge=0)
    relational_weight: float = Field(default=0.0, ge=0)
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = ()
    views: int = Field(default=4, ge=1)
    stored: AugmentationName = "weak"
    fresh: AugmentationName = "strong"
    fresh_share: float = Field(default=0.5, ge=0, le=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    evaluate_every: int = Field(default=100, ge=1)
    held_out: str | None = None
    half: bool = True
    keep_paths: bool = False

    def same_run(self) -> dict[str, object]:
        """What must not change between a run and its continuation."""
        free = {"out", "threads", "workers", "checkpoint_every", "held_out", "evaluate_every", "half", "keep_paths"}
        return self.model_dump(mode="json", exclude=free)

    def for_report(self, *, only: set[str] | None = None) -> dict[str, Any]:
        """Options as they stand in a student's folder, which is handed on.

        Unless `keep_paths`, models go by their last name, and tile sets, which patients give their names, by none.
        """
        found = self.model_dump(mode="json", include=only)
        if self.keep_paths:
            return found
        hide = {"tiles": _left_out, "held_out": _left_out}
        for name in found.keys() & {"teachers", "tiles", "out", "student", "init_from", "held_out"}:
            value, shown = found[name], hide.get(name, last_name)
            if value is not None:
                found[name] = shown(value) if isinstance(value, str) else [shown(one) for one in value]
        return found

    def shown_tiles(self, tiles: Sequence[TilesProvenance]) -> tuple[TilesProvenance, ...]:
        """What a student's folder says of tile sets: without `keep_paths` their kind and fingerprint, no name."""
        if self.keep_paths:
            return tuple(tiles)
        return tuple(shown for shown in map(unnamed_tiles, tiles) if shown is not None)


def _left_out(_: str) -> str:
    return LEFT_OUT
