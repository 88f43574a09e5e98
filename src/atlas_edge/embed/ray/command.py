"""`atlas-embed ray FOLDER`, registered by `embed.cli`."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from atlas_edge.cli import existing_folder, print_json
from atlas_edge.embed.config import SLIDE_LIST, Bundles, EmbedConfig
from atlas_edge.errors import InputError, UsageError
from atlas_edge.options import Flag, Output, Running


def ray(
    folder: Path | None = None,
    /,
    *,
    bundle: Bundles,
    out: Path,
    slide_list: Annotated[Path | None, Parameter(name=SLIDE_LIST)] = None,
    mask: Path | None = None,
    workers: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 2,
    gpus_a_worker: Annotated[float, Parameter(validator=validators.Number(gte=0, lt=2**10))] = 0.0,
    address: str | None = None,
    form: str = "h5",
    config: EmbedConfig = EmbedConfig(),
    re_embed: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Embed a folder of slides over the machines of a Ray cluster.

    Slides that the same plan has embedded already are left out, so the same command goes on after an interruption.
    Slides, bundle and --out lie on storage that all machines see. Example:

        atlas-embed ray /archive --bundle atlas2-s-openvino-int8 --out /embeddings --workers 16 --address auto

    Args:
        folder: Folder with slides, with its subfolders.
        bundle: Bundle folder, or a package, whose variant is chosen on this machine; given again for another one.
        out: Folder for the embeddings, in which each of several bundles has one of its own name.
        slide_list: CSV file with the columns slide and, if wanted, mpp (µm per pixel, whatever the slide says) and id
            (of the output), in place of a folder.
        mask: Folder with a file of each slide's name that says where tissue is: GeoJSON from QuPath, or a PNG or TIFF
            of the whole slide, black where none is.
        workers: Encoders at work.
        gpus_a_worker: GPUs for each of them.
        address: Ray cluster, auto for the one that this machine belongs to; a local one is started when left out.
        form: Form of the embeddings: h5, h5ad, zarr, spatialdata, parquet or pt.
        config: How slides are embedded; threads are each worker's.
        re_embed: Embed again what another bundle, scale or tissue limit embedded; refused when left out.
        dry_run: List what would be embedded, and start nothing.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.embed.bundles import choose_bundles, jobs_of, left_to_do
    from atlas_edge.embed.cli import result_line
    from atlas_edge.embed.jobs import FoundSlide, SlideFailure, SlideSkipped
    from atlas_edge.embed.mask_files import with_masks
    from atlas_edge.embed.output.files import check_form
    from atlas_edge.embed.slide_files import find_slides
    from atlas_edge.embed.slide_list import read_slide_list

    if (folder is None) == (slide_list is None):
        raise UsageError("expected one of a folder and --slides", hint="name a folder, or a CSV file of slides")
    check_form(out / f"x.{form}")
    out, facts = out.resolve(), None
    if slide_list is not None:
        found, facts = read_slide_list(slide_list.resolve())
    if folder is not None:
        root = existing_folder(folder, "a folder of slides").resolve()
        found = [FoundSlide(path, root) for path in find_slides(root, out)]
    bundles = choose_bundles(bundle, out, Running())
    places = jobs_of(bundles, found, None, form, tokens=config.tokens)
    config = dataclasses.replace(config, of_slides=with_masks(places[0], mask and mask.resolve(), facts, config))
    jobs, skipped, failed = left_to_do(bundles, places, config, overwrite=False, re_embed=re_embed)
    screen.print(f"{len(jobs)} slides to embed, {len(skipped)} already embedded", soft_wrap=True)
    for failure in failed:
        screen.print(result_line(failure), markup=False, soft_wrap=True)
    results: list[dict[str, Any]] = []
    failures = [dataclasses.asdict(failure) for failure in failed]
    without_tissue: list[dict[str, Any]] = []
    if jobs and not dry_run:
        from atlas_edge.embed.ray.data import embed_with_ray

        paths = {number: str(Path(one.path).resolve()) for number, one in enumerate(bundles)}
        items = embed_with_ray(jobs, paths, config, workers=workers, gpus_a_worker=gpus_a_worker, address=address)
        # Ray tells on stdout of workers that died.
        with contextlib.redirect_stdout(sys.stderr):
            for item, actor in items:
                kept = failures if isinstance(item, SlideFailure) else results
                if isinstance(item, SlideSkipped):
                    kept = without_tissue
                kept.append({**dataclasses.asdict(item), "actor": actor})
                screen.print(result_line(item), markup=False, soft_wrap=True)
    if output.json:
        to_do = [str(slide) for slide, _ in jobs] if dry_run else []
        print_json({"slides": results, "skipped": without_tissue, "failed": failures, "to_do": to_do})
    if failures:
        failed_slides = {failure["slide"] for failure in failures}
        raise InputError(f"{len(failed_slides)} of {len(found)} slides failed", hint="see the lines above")
