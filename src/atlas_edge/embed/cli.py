"""`atlas-embed`: slides in, embeddings out."""

import dataclasses
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from atlas_edge.cli import make_app, print_json, run_app, take_file
from atlas_edge.embed.config import SLIDE_LIST, Bundles, EmbedConfig
from atlas_edge.embed.ray.command import ray
from atlas_edge.embed.service.command import service
from atlas_edge.embed.watch.command import forget, retry, watch
from atlas_edge.errors import AtlasError, InputError, RuntimeMissing, UsageError
from atlas_edge.options import Flag, Output, Running, Threads
from atlas_edge.system.paths import printable

HELP = """Embed the tissue of whole slides with a bundle.

Example, one slide:

    atlas-embed scan.svs --bundle atlas2-s-openvino-int8 --out scan.h5

A run that was killed goes on where it stopped when the same command is given again; slides that are done are left out.
"""

app = make_app("atlas-embed", HELP)
app.command(watch)
take_file(app, "watch")
app.command(retry)
app.command(forget)
app.command(service)
app.command(ray)


@app.default
def embed(
    slide: list[Path] | None = None,
    /,
    *,
    bundle: Bundles,
    out: Path,
    slide_list: Annotated[Path | None, Parameter(name=SLIDE_LIST)] = None,
    mask: Path | None = None,
    form: str = "h5",
    config: EmbedConfig = EmbedConfig(),
    streams: Threads = None,
    devices: str = "",
    running: Running = Running(),
    overwrite: Flag = False,
    re_embed: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Embed slides.

    Args:
        slide: Slide files, patterns such as '*.svs', or folders with their subfolders.
        bundle: Bundle folder, or a package of several (or a model, which then runs in PyTorch). Given again for another
            one, each slide is embedded by all of them, and decoded once for those of one tile side and scale.
        out: For one slide the file: .h5, .h5ad, .parquet, .pt, or a folder, .zarr or .spatialdata. For several a
            folder, in which each of several bundles has one of its own name.
        slide_list: CSV file with the columns slide and, if wanted, mpp (µm per pixel, whatever the slide says) and id
            (of the output), in place of names.
        mask: Where tissue is, in place of a search: GeoJSON from QuPath, or a PNG or TIFF of the whole slide, black
            where none is; for several slides a folder with such files of their names.
        form: Form of the files in that folder: h5, h5ad (AnnData), zarr, spatialdata (zarr as SpatialData and
            LazySlide have it), parquet, or pt (tensors for CLAM, by PyTorch).
        config: How slides are embedded.
        config.mpp: µm per pixel of slides that do not say it; of a slide that is named alone, whatever it says.
        streams: Calls side by side in OpenVINO; chosen by the cores when left out.
        devices: CUDA devices such as 0,1: one worker process each.
        running: On what the bundle runs.
        overwrite: Embed all slides, also those whose output is there.
        re_embed: Embed again what another bundle, scale or tissue limit embedded; refused when left out.
        dry_run: Find the tissue, say what would be embedded, and write nothing.
        output: What is printed.
    """
    if devices and running != Running():
        raise UsageError("--devices says already what its workers run on", hint="leave --device and --cache out")
    # One console: a second one would print into the bar of the first.
    screen = output.screen()
    from atlas_edge.embed.bundles import choose_bundles, jobs_of, left_to_do
    from atlas_edge.embed.jobs import SlideFailure, SlideSkipped, expand
    from atlas_edge.embed.mask_files import with_masks
    from atlas_edge.embed.output.tokens import tokens_in_words
    from atlas_edge.embed.slide_list import read_slide_list

    if bool(slide) == (slide_list is not None):
        raise UsageError(
            f"slides are named, and by {SLIDE_LIST}, too" if slide else "no slide is named",
            hint=f"name slides, or a CSV file of them with {SLIDE_LIST}",
        )
    named = slide or []
    found, facts = read_slide_list(slide_list) if slide_list else (expand(named, out), None)
    bundles = choose_bundles(bundle, out, running)
    jobs = jobs_of(bundles, found, named, form, tokens=config.tokens)
    alone = len(found) == 1 and [path for path, _ in jobs[0]] == named
    config = dataclasses.replace(config, override_mpp=alone, of_slides=with_masks(jobs[0], mask, facts, config))
    for one in bundles if config.tokens else ():
        screen.print(tokens_in_words(one.spec))
    to_do, skipped, failures = left_to_do(bundles, jobs, config, overwrite=overwrite, re_embed=re_embed)
    for item in (*skipped, *(failures if len(found) > 1 else ())):
        screen.print(result_line(item), markup=False, soft_wrap=not screen.is_terminal)
    if dry_run:
        _show_plans(to_do, bundles, config, screen, json=output.json)
        _raise_first(failures, len(found))
        return
    results: list[Any] = []
    with closing(_results(to_do, bundles, config, devices, streams, screen)) as items:
        for item in items:
            failed = isinstance(item, SlideFailure)
            (failures if failed else skipped if isinstance(item, SlideSkipped) else results).append(item)
            if not failed or len(found) > 1:
                screen.print(result_line(item), markup=False, soft_wrap=not screen.is_terminal)
    if output.json:
        kinds = {"slides": results, "skipped": skipped, "failed": failures}
        print_json({name: [dataclasses.asdict(item) for item in items] for name, items in kinds.items()})
    _raise_first(failures, len(found))


def main() -> None:
    """Run the command."""
    sys.exit(run_app(app))


def result_line(item: Any) -> str:
    """What became of a slide, in words."""
    name = printable(Path(item.slide).name)
    if hasattr(item, "reason"):
        return f"{name}: FAILED: {item.reason}"
    if hasattr(item, "why"):
        return f"{name}: {item.why}"
    lines = [
        f"{name}: {item.tiles} tiles at {item.mpp:.3g} µm per pixel in {item.seconds:.1f} s "
        f"({item.tiles_per_s:.0f} tiles/s), {len(item.unreadable)} unreadable, {item.resumed_tiles} "
        f"from an earlier run{_left_out(item.skipped_tiles)} -> {printable(item.out)}"
    ]
    lines += [f"  unreadable at {where}: {reason}" for where, reason in item.unreadable.items()]
    return "\n".join(lines)


def _left_out(skipped_tiles: int) -> str:
    return f", {skipped_tiles} with tissue left out as --most-tiles says" if skipped_tiles else ""


def _show_plans(jobs: Sequence[Any], bundles: Sequence[Any], config: Any, screen: Any, *, json: bool) -> None:
    from atlas_edge.embed.slide import plan_slide

    plans = [
        {**dataclasses.asdict(plan_slide(slide, bundles[number].spec, config)), "out": str(out)}
        for slide, outs in jobs
        for number, out in outs.items()
    ]
    for plan in plans:
        screen.print(
            "{slide}: {vendor}, {slide_mpp:.3g} µm per pixel; {tiles} of {candidates} tiles at {mpp:.3g} µm per pixel "
            "from level {level}{left_out}, {size_mb:,.1f} MB, would go to {out}".format(
                left_out=_left_out(plan["skipped_tiles"]),
                **{**plan, "slide": printable(plan["slide"]), "out": printable(plan["out"])},
                size_mb=plan["size_bytes"] / 1e6,
            ),
            markup=False,
            soft_wrap=not screen.is_terminal,
        )
    if json:
        print_json({"plans": plans})


def _results(
    jobs: Sequence[Any], bundles: Sequence[Any], config: Any, devices: str, streams: int | None, screen: Any
) -> Generator[Any, None, None]:
    from atlas_edge.embed.workers import embed_here, embed_on_devices, open_encoder

    if not jobs:
        return
    names = [name.strip() for name in devices.split(",") if name.strip()]
    wanted = {number: bundles[number] for number in sorted({number for _, outs in jobs for number in outs})}
    if names:
        paths = {number: one.path for number, one in wanted.items()}
        with closing(embed_on_devices(jobs, paths, config, devices=names, streams=streams)) as results:
            yield from results
        return
    with ExitStack() as opened:
        encoders = {}
        for number, one in wanted.items():
            encoders[number] = open_encoder(one.path, batch=config.batch, streams=streams, running=one.running)
            opened.callback(encoders[number][0].close)
        for notice in dict.fromkeys(encoder.spec.notice for encoder, _ in encoders.values()):
            if notice:
                screen.print(f"WARNING: {notice}")
        progress = opened.enter_context(_progress(screen))
        yield from embed_here(jobs, encoders, config, progress)


@contextmanager
def _progress(screen: Any) -> Iterator[Any]:
    """A bar for the slide that is being embedded, on a terminal only."""
    if not screen.is_terminal:
        yield lambda *_: None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    fits = Column(no_wrap=True, overflow="ellipsis", max_width=screen.width // 2 - 6)
    name = TextColumn("{task.description}", table_column=fits)
    columns = (name, BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        tasks: dict[Path, Any] = {}

        def advance(slide: Path, done: int, total: int) -> None:
            if slide not in tasks:
                for other in tasks.values():
                    bar.remove_task(other)
                tasks.clear()
                tasks[slide] = bar.add_task(escape(slide.name), total=None)
            # Without tissue found yet the number of tiles is not known: the bar then moves to and fro.
            bar.update(tasks[slide], completed=done, total=total or None)

        yield advance


def _raise_first(failures: list[Any], total: int) -> None:
    if not failures:
        return
    if total == 1:
        message, _, hint = failures[0].reason.partition("\n  fix: ")
    else:
        failed = dict.fromkeys(failure.slide for failure in failures)
        names = ", ".join(printable(Path(slide).name) for slide in failed)
        message, hint = f"{len(failed)} of {total} slides failed: {names}", "see the lines above"
    kinds: dict[int, type[AtlasError]] = {kind.exit_code: kind for kind in (UsageError, RuntimeMissing)}
    raise kinds.get(failures[0].exit_code, InputError)(message, hint=hint or None)
