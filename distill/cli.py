"""`atlas-distill`: a teacher and unlabelled tiles in, a student checkpoint out."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from atlas_edge.cli import console, make_app, print_json, require_module, run_app, set_verbosity
from atlas_edge.distill.commands.judging import compare, evaluate
from atlas_edge.distill.options import AugmentationName, Many, train_config
from atlas_edge.distill.reporting.display import Display
from atlas_edge.errors import UsageError
from atlas_edge.models.students import OWN_NAMES
from atlas_edge.options import Flag, Json, Quiet, Verbose

HELP = """Distil a small student from a large teacher, on unlabelled tiles.

Example, with features that are computed once:

    atlas-distill cache my-teacher tiles --out features --grid 14
    atlas-distill features --tiles tiles --student vit_tiny_patch16_224 --out my-student
    atlas-distill evaluate my-teacher my-student --fit labelled

Several GPUs or machines: `accelerate launch -m atlas_edge.distill …` with the same options;
`--use_fsdp --fsdp_version 2` before `-m` spreads weights and optimiser over them.
"""

app = make_app("atlas-distill", HELP)


@app.default
def train(
    *teachers: str,
    tiles: Many,
    out: Path,
    student: str = "atlas2-s",
    init: Literal["teacher", "random"] = "random",
    init_from: str | None = None,
    init_tiles: int = 384,
    whitening: float = 0.5,
    fit_heads: bool = True,
    steps: int = 2_000,
    batch: int = 32,
    lr: float = 1e-4,
    warmup: int = 100,
    weight_decay: float = 0.05,
    clip: float = 1.0,
    ema: float = 0.998,
    loss: Literal["cosine", "l1"] = "cosine",
    phi_s: bool = True,
    patch_weight: float = 1.0,
    relational_weight: float = 0.0,
    matryoshka: Annotated[tuple[int, ...], Parameter(negative="", consume_multiple=True)] = (),
    views: int = 4,
    stored: AugmentationName = "weak",
    fresh: AugmentationName = "strong",
    fresh_share: float = 0.5,
    precision: Literal["bf16", "fp32"] = "bf16",
    seed: int = 0,
    threads: int | None = None,
    workers: int = 1,
    checkpoint_every: int = 100,
    evaluate_every: int = 100,
    held_out: str | None = None,
    half: bool = True,
    overwrite: Flag = False,
    keep_paths: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a student. The same command goes on where a killed run stopped.

    Args:
        teachers: Teacher folders, hf-hub:organisation/name, or folders of cached features.
        tiles: Tile sets (those with splits give train) and slides, such as scan.svs@0.5,1 for two µm per pixel.
        out: Folder of the student.
        student: Registry name, timm architecture, or a folder to go on from (./NAME where it has a registry name).
        init: First weights: fitted to the first ViT teacher in closed form, or random.
        init_from: Folder of the ViT to inherit from, where the teacher is a cache.
        init_tiles: Views used for the fit of --init teacher.
        whitening: How far that fit evens out the CLS embedding's channels: 0 turns and centres them, 1 gives them equal
            deviations.
        fit_heads: Begin with heads fitted on some 2,000 views, where the student's weights are not random.
        steps: Optimiser steps.
        batch: Views a step, over all processes.
        lr: Peak learning rate.
        warmup: Steps of warm-up.
        weight_decay: AdamW's weight decay.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are what is saved.
        loss: 0.9 cosine + 0.1 smooth-L1, or L1 alone.
        phi_s: Normalise targets by PHI-S.
        patch_weight: Weight of the patch-token loss; 0 asks for CLS tokens only.
        relational_weight: Weight of the similarity-matrix loss.
        matryoshka: Embedding prefixes that must be useful alone, dimensions.
        views: Stored views of each tile; a cache knows its own.
        stored: Augmentation that teacher and student see; a cache knows its own.
        fresh: Augmentation that only the student sees.
        fresh_share: Share of views that get it.
        precision: Autocast of the student.
        seed: Seed of every random choice.
        threads: PyTorch's threads.
        workers: Decoding threads.
        checkpoint_every: Steps between checkpoints.
        evaluate_every: Steps between looks at the held-out tiles.
        held_out: Tile set for those looks, none of which the student learns from.
        half: Save float16 weights.
        overwrite: Replace an existing student and start anew.
        keep_paths: Write paths, and the names of tile sets, into report and card. They are left out otherwise: in a
            hospital they name patients.
        dry_run: Check the options, print the resolved configuration, write nothing.
        json: Print the report as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    options = {name: value for name, value in locals().items() if name not in _NOT_OPTIONS}
    set_verbosity(quiet=quiet, verbose=verbose)
    require_module("timm", extra="torch")
    config = train_config(options)
    screen = console(quiet=quiet)
    if dry_run:
        print_json(config.model_dump(mode="json"))
        return
    from atlas_edge.distill.training.run import distill

    with Display(screen, config.steps) as display:
        report = distill(config, overwrite=overwrite, warn=display.warn, progress=display.show)
    if json:
        data = asdict(report)
        print_json(data | {"teachers": [teacher.model_dump() for teacher in report.teachers]})
    elif not quiet:
        cosine = "" if report.held_out_cosine is None else f", held-out cosine {report.held_out_cosine:.4f}"
        screen.print(f"{report.student}: {report.steps} steps{cosine}")


@app.command
def cache(
    teacher: str,
    *tiles: str,
    out: Path,
    views: int = 4,
    augmentation: AugmentationName = "weak",
    tile_px: int = 224,
    grid: int | None = None,
    batch: int = 16,
    threads: int | None = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compute a teacher's features once; the same command goes on where a killed one stopped.

    Args:
        teacher: Teacher folder or hf-hub:organisation/name.
        tiles: Tile sets (those with splits give train) and slides, such as scan.svs@0.5,1 for two µm per pixel.
        out: Folder of the cache.
        views: Augmented views of each tile; the first is the plain tile.
        augmentation: How far those views move.
        tile_px: Side of the views: the student's input.
        grid: Keep patch tokens, on a grid of this side (14 for patch 16 at 224 px); CLS features only, for training
            with --patch-weight 0, when left out.
        batch: Tiles a batch.
        threads: PyTorch's threads.
        json: Print what was written as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    require_module("timm", extra="torch")
    if not tiles or views < 1 or batch < 1:
        raise UsageError(
            "expected at least one tile set, and --views and --batch of 1 or more",
            hint="see atlas-distill cache --help",
        )
    import torch

    from atlas_edge.distill.data.augment import Augmentation
    from atlas_edge.distill.data.cache import write_cache
    from atlas_edge.distill.data.teachers import licence_warning, open_teacher
    from atlas_edge.distill.data.tileset import open_training_tiles
    from atlas_edge.distill.training.out_of_memory import memory_explained

    if threads is not None:
        torch.set_num_threads(threads)
    screen = console(quiet=quiet)
    hint = f"use --batch {max(batch // 2, 1)}: what is there of the cache is kept"
    with memory_explained("while the teacher was opened", hint="use a device with more memory, or another teacher"):
        loaded = open_teacher(teacher)
    warning = licence_warning(loaded.provenance)
    if warning is not None:
        screen.print(f"warning: {warning}", style="yellow")
    with Display(screen, 0) as display, memory_explained(f"with --batch {batch}", hint=hint):
        index = write_cache(
            out,
            loaded,
            open_training_tiles(tiles, tile_px=tile_px),
            seeds=tuple(range(views)),
            augmentation=Augmentation.named(augmentation),
            tile_px=tile_px,
            grid=grid,
            batch=batch,
            progress=display.count,
        )
    if json:
        print_json(index.model_dump(mode="json"))
    else:
        screen.print(f"{out}: {index.views} views of {index.tiles} tiles")


@app.command
def fit(
    teacher: str,
    *tiles: str,
    out: Path,
    student: str = "vit_tiny_patch16_224",
    init_tiles: int = 384,
    whitening: float = 0.5,
    views: int = 4,
    stored: AugmentationName = "weak",
    fresh: AugmentationName = "strong",
    precision: Literal["bf16", "fp32"] = "bf16",
    seed: int = 0,
    threads: int | None = None,
    half: Flag = False,
    overwrite: Flag = False,
    keep_paths: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit a student to a teacher in closed form: an encoder as it is, and the first weights of any number of runs.

    Train from them with --student FOLDER. A run of its own does the same with --init teacher.

    Args:
        teacher: Folder of a ViT.
        tiles: Tile sets and slides, as for training.
        out: Folder of the fitted student.
        student: Registry name, timm architecture, or folder of a ViT with the teacher's depth and head size.
        init_tiles: Views used for the fit, spread over all views of all tiles.
        whitening: How far the CLS embedding's channels are evened out: 0 turns and centres them, 1 gives them equal
            deviations.
        views: Stored views of each tile.
        stored: Augmentation that teacher and student see.
        fresh: Augmentation that only the student sees.
        precision: Of the activations.
        seed: Seed of the views.
        threads: PyTorch's threads.
        half: Save float16 weights: enough to embed with; leave it out where training follows.
        overwrite: Replace an existing folder.
        keep_paths: Write paths, and the names of tile sets, into report and card. They are left out otherwise: in a
            hospital they name patients.
        dry_run: Check the options, print them, write nothing.
        json: Print the report as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    options = {name: value for name, value in locals().items() if name not in {*_NOT_OPTIONS, "teacher"}}
    set_verbosity(quiet=quiet, verbose=verbose)
    require_module("timm", extra="torch")
    config = train_config({**options, "teachers": (teacher,), "init": "teacher", "batch": 1})
    from atlas_edge.distill.closed_form.fit import OPTIONS, as_json, fit_student

    if dry_run:
        print_json(config.model_dump(mode="json", include=OPTIONS))
        return
    screen = console(quiet=quiet)
    done = fit_student(config, overwrite=overwrite, warn=lambda text: screen.print(f"warning: {text}", style="yellow"))
    if json:
        print_json(as_json(done))
    else:
        screen.print(
            f"{out}: fitted to {teacher} on {done.views} views, CLS cosine {done.cls_cosine:.3f} there; "
            f"train it with --student {'./' if str(out) in OWN_NAMES else ''}{out}"
        )


app.command(evaluate)
app.command(compare)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


_NOT_OPTIONS = frozenset({"overwrite", "dry_run", "json", "quiet", "verbose"})
