"""`atlas-embed`: slides in, embeddings out."""

import dataclasses
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from atlas_edge.cli import console, make_app, print_json, run_app, set_verbosity
from atlas_edge.embed.ray_command import ray
from atlas_edge.embed.watch_command import watch
from atlas_edge.errors import InputError, UsageError
from atlas_edge.options import Flag, Quiet, Verbose

HELP = """Embed the tissue of whole slides with a bundle.

Example, one slide:

    atlas-embed scan.svs --bundle atlas2-s-openvino-int8 --out scan.h5

A run that was killed goes on where it stopped when the same command is given again.
"""

app = make_app("atlas-embed", HELP)
app.command(watch)
app.command(ray)


_SUFFIXES = (".h5", ".hdf5", ".zarr", ".parquet")


@app.default
def embed(
    slides: list[Path],
    /,
    *,
    bundle: str,
    out: Path,
    form: str = "h5",
    mpp: float | None = None,
    tile_mpp: float | None = None,
    min_tissue: float = 0.1,
    tissue: bool = True,
    max_unreadable: float = 0.01,
    threads: int = 1,
    streams: int | None = None,
    batch: int = 64,
    devices: str = "",
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embed slides.

    Args:
        slides: Slide files.
        bundle: Bundle folder (or a model, which then runs in PyTorch).
        out: For one slide the file: .h5, .parquet, or .zarr, a folder. For several a folder.
        form: Form of the files in that folder: h5, zarr or parquet.
        mpp: µm per pixel of slides that do not say it; of a slide that is named alone, whatever it says.
        tile_mpp: µm per pixel of tiles; the encoder's own by default.
        min_tissue: Least share of tissue in a tile, 0-1.
        tissue: Look for tissue; --no-tissue embeds the whole grid.
        max_unreadable: Largest share of unreadable tiles that a slide may have, 0-1.
        threads: Decode threads.
        streams: Calls side by side in OpenVINO; chosen by the cores when left out.
        batch: Tiles a batch.
        devices: CUDA devices such as 0,1: one worker process each.
        overwrite: Replace outputs that are there.
        dry_run: Find the tissue, say what would be embedded, and write nothing.
        json: Results as JSON on stdout.
        quiet: Say nothing but errors.
        verbose: Say more.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    config = make_config(
        mpp=mpp,
        override_mpp=len(slides) == 1,
        tile_mpp=tile_mpp,
        min_tissue=min_tissue,
        tissue=tissue,
        max_unreadable=max_unreadable,
        threads=threads,
        batch=batch,
    )
    from atlas_edge.embed.output import check_form

    jobs = list(zip(slides, _outputs(slides, out, form, overwrite=overwrite), strict=True))
    for _, target in jobs:
        check_form(target)
    if dry_run:
        _show_plans(jobs, bundle, config, quiet=quiet, json=json)
        return
    results: list[Any] = []
    failures: list[Any] = []
    # One console: a second one would print into the bar of the first.
    screen = console(quiet=quiet)
    with closing(_results(jobs, bundle, config, devices, streams, screen)) as items:
        for item in items:
            failed = hasattr(item, "reason")
            (failures if failed else results).append(item)
            if not failed or len(jobs) > 1:
                screen.print(result_line(item), markup=False, soft_wrap=not screen.is_terminal)
    if json:
        print_json(
            {"slides": [dataclasses.asdict(r) for r in results], "failed": [dataclasses.asdict(f) for f in failures]}
        )
    _raise_first(failures, len(jobs))


def main() -> None:
    """Run the command."""
    sys.exit(run_app(app))


def make_config(**options: Any) -> Any:
    """An `EmbedConfig`, or a UsageError that names the option."""
    from pydantic import ValidationError

    from atlas_edge.embed.slide import EmbedConfig

    try:
        return EmbedConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {first['input']}: {first['msg']}", hint="see atlas-embed --help") from error


def result_line(item: Any) -> str:
    """What became of a slide, in words."""
    if hasattr(item, "reason"):
        return f"{Path(item.slide).name}: FAILED: {item.reason}"
    lines = [
        f"{Path(item.slide).name}: {item.tiles} tiles at {item.mpp:.3g} µm per pixel in {item.seconds:.1f} s "
        f"({item.tiles_per_s:.0f} tiles/s), {len(item.unreadable)} unreadable, {item.resumed_tiles} "
        f"from an earlier run -> {item.out}"
    ]
    lines += [f"  unreadable at {where}: {reason}" for where, reason in item.unreadable.items()]
    return "\n".join(lines)


def _outputs(slides: list[Path], out: Path, form: str, *, overwrite: bool) -> list[Path]:
    if f".{form}" not in _SUFFIXES:
        raise UsageError(f"--form {form}: expected h5, zarr or parquet", hint="leave it out for h5")
    several = len(slides) > 1 or (out.is_dir() and out.suffix not in _SUFFIXES)
    outputs = [out / f"{slide.stem}.{form}" for slide in slides] if several else [out]
    if several and out.is_file():
        raise UsageError(f"{out} is a file, expected a folder for {len(slides)} slides", hint="choose another --out")
    twice = sorted({str(path) for path in outputs if outputs.count(path) > 1})
    if twice:
        raise UsageError(f"two slides would both be written to {twice[0]}", hint="embed them one by one")
    there = [path for path in outputs if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} exists", hint="add --overwrite to replace it")
    return outputs


def _show_plans(jobs: list[tuple[Path, Path]], bundle: str, config: Any, *, quiet: bool, json: bool) -> None:
    from atlas_edge.bundle import MANIFEST, read_manifest
    from atlas_edge.embed.slide import plan_slide
    from atlas_edge.models import load_model

    is_bundle = (Path(bundle) / MANIFEST).is_file()
    spec = read_manifest(Path(bundle)).encoder if is_bundle else load_model(bundle).spec
    plans = [{**dataclasses.asdict(plan_slide(slide, spec, config)), "out": str(out)} for slide, out in jobs]
    for plan in plans:
        console(quiet=quiet).print(
            "{slide}: {vendor}, {slide_mpp:.3g} µm per pixel; {tiles} of {candidates} tiles at {mpp:.3g} µm per pixel "
            "from level {level} would go to {out}".format(**plan),
            markup=False,
        )
    if json:
        print_json({"plans": plans})


def _results(
    jobs: list[tuple[Path, Path]], bundle: str, config: Any, devices: str, streams: int | None, screen: Any
) -> Generator[Any, None, None]:
    from atlas_edge.embed.workers import embed_here, embed_on_devices, open_encoder

    names = [name.strip() for name in devices.split(",") if name.strip()]
    if names:
        with closing(embed_on_devices(jobs, bundle, config, devices=names, streams=streams)) as results:
            yield from results
        return
    encoder, sha256 = open_encoder(bundle, batch=config.batch, streams=streams)
    if encoder.spec.notice:
        screen.print(f"WARNING: {encoder.spec.notice}")
    try:
        with _progress(screen) as progress:
            yield from embed_here(jobs, encoder, config, sha256, progress)
    finally:
        encoder.close()


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
        names = ", ".join(Path(failure.slide).name for failure in failures)
        message, hint = f"{len(failures)} of {total} slides failed: {names}", "see the lines above"
    kind = UsageError if failures[0].exit_code == UsageError.exit_code else InputError
    raise kind(message, hint=hint or None)
