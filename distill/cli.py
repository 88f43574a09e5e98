"""`atlas-distill`: a teacher and unlabelled tiles in, a student checkpoint out."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from atlas_edge.cli import given_value, make_app, print_json, require_module, run_app
from atlas_edge.distill.commands.judging import compare, evaluate
from atlas_edge.distill.commands.packing import pack
from atlas_edge.distill.reporting.display import Display
from atlas_edge.distill.training.config import AugmentationName, FitOptions, PresetName, TrainConfig, TrainOptions
from atlas_edge.errors import UsageError
from atlas_edge.models.students import OWN_NAMES
from atlas_edge.options import Count, Flag, Output, Threads

if TYPE_CHECKING:
    import cyclopts

PRESETS = Path(__file__).parent / "presets.toml"
HELP = """Distil a small student from a large teacher, on unlabelled tiles.

Example, with features that are computed once:

    atlas-distill cache my-teacher tiles --out features --grid 14
    atlas-distill features --tiles tiles --student vit_tiny_patch16_224 --out my-student
    atlas-distill evaluate my-teacher my-student --fit labelled

Several GPUs or machines: `accelerate launch -m atlas_edge.distill …` with the same options;
`--use_fsdp --fsdp_version 2` before `-m` spreads weights and optimiser over them.
"""

app = make_app("atlas-distill", HELP)


def _apply_preset(app: "cyclopts.App", commands: tuple[str, ...], arguments: "cyclopts.ArgumentCollection") -> None:
    """What `--preset` names, for options that nobody gave."""
    import cyclopts

    name = given_value(arguments, "--preset")
    if name is not None and name in get_args(PresetName):
        cyclopts.config.Toml(PRESETS, root_keys=[name], use_commands_as_keys=False)(app, commands, arguments)


app.config = (*app.config, _apply_preset)


@app.default
def train(
    *teachers: str,
    options: TrainOptions,
    preset: PresetName | None = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Train a student. The same command goes on where a killed run stopped.

    Args:
        teachers: Teacher folders, hf-hub:organisation/name, or folders of cached features.
        options: What shapes the run.
        preset: Options for a trial in minutes, a day or a week, where they are not given; --dry-run prints them.
        overwrite: Replace an existing student and start anew.
        dry_run: Check the options, print the resolved configuration, write nothing.
        output: What is printed.
    """
    screen = output.screen()
    require_module("timm", extra="torch")
    if options.log_to is not None:
        require_module(options.log_to, extra=options.log_to)
    config = TrainConfig(teachers=teachers, **vars(options))
    if dry_run:
        print_json(config.as_json())
        return
    from atlas_edge.distill.training.run import distill

    with Display(screen, config.steps) as display:
        report = distill(config, overwrite=overwrite, warn=display.warn, progress=display.show)
    if output.json:
        data = asdict(report)
        print_json(data | {"teachers": [teacher.model_dump() for teacher in report.teachers]})
    elif not output.quiet:
        cosine = "" if report.held_out_cosine is None else f", held-out cosine {report.held_out_cosine:.4f}"
        screen.print(f"{report.student}: {report.steps} steps{cosine}")


@app.command
def cache(
    teacher: str,
    *tiles: str,
    out: Path,
    views: int = 4,
    augmentation: AugmentationName = "weak",
    tile_px: Count = 224,
    grid: int | None = None,
    batch: int = 16,
    threads: Threads = None,
    output: Output = Output(),
) -> None:
    """Compute a teacher's features once; the same command goes on where a killed one stopped.

    Args:
        teacher: Teacher folder or hf-hub:organisation/name.
        tiles: Tile sets (those with splits give train) and slides: scan.svs@0.5,1 for two µm per pixel, @0.25-2 for all
            between.
        out: Folder of the cache.
        views: Augmented views of each tile; the first is the plain tile.
        augmentation: How far those views move.
        tile_px: Side of the views: the student's input.
        grid: Keep patch tokens, on a grid of this side (14 for patch 16 at 224 px); CLS features only, for training
            with --patch-weight 0, when left out.
        batch: Tiles a batch.
        threads: PyTorch's threads.
        output: What is printed.
    """
    screen = output.screen()
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
    if output.json:
        print_json(index.model_dump(mode="json"))
    else:
        screen.print(f"{out}: {index.views} views of {index.tiles} tiles")


@app.command
def fit(
    teacher: str,
    *tiles: str,
    options: FitOptions,
    overwrite: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Fit a student to a teacher in closed form: an encoder as it is, and the first weights of any number of runs.

    Train from them with --student FOLDER. A run of its own does the same with --init teacher.

    Args:
        teacher: Folder of a ViT.
        tiles: Tile sets and slides, as for training.
        options: What shapes the fit.
        overwrite: Replace an existing folder.
        dry_run: Check the options, print them, write nothing.
        output: What is printed.
    """
    screen = output.screen()
    require_module("timm", extra="torch")
    config = TrainConfig(teachers=(teacher,), tiles=tiles, init="teacher", batch=1, **vars(options))
    from atlas_edge.distill.closed_form.fit import OPTIONS, as_json, fit_student

    if dry_run:
        print_json(config.as_json(include=OPTIONS))
        return
    done = fit_student(config, overwrite=overwrite, warn=lambda text: screen.print(f"warning: {text}", style="yellow"))
    if output.json:
        print_json(as_json(done))
    else:
        screen.print(
            f"{config.out}: fitted to {teacher} on {done.views} views, CLS cosine {done.cls_cosine:.3f} there; "
            f"train it with --student {'./' if str(config.out) in OWN_NAMES else ''}{config.out}"
        )


app.command(pack)
app.command(evaluate)
app.command(compare)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))
