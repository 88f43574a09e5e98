"""`atlas-distill pack`: tissue tiles of many slides, cut once."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from cyclopts import Parameter, validators

from atlas_edge.cli import print_json
from atlas_edge.distill.reporting.display import Display
from atlas_edge.errors import InputError
from atlas_edge.options import Output

_Positive = Annotated[int, Ge(1), Parameter(validator=validators.Number(gte=1))]
_Quality = Annotated[int, Ge(1), Le(100), Parameter(validator=validators.Number(gte=1, lte=100))]


def pack(
    *slides: str,
    out: Path,
    tile_px: _Positive = 256,
    quality: _Quality = 90,
    threads: _Positive = 2,
    licence: str | None = None,
    output: Output = Output(),
) -> None:
    """Cut slides into WebDataset tars of JPEG tiles; the same command goes on where a killed one stopped.

    Args:
        slides: Slides, such as scan.svs@0.5 or scan.svs@0.25-2, or folders of them (FOLDER@0.25-2).
        out: Folder of the shards, which is a tile set from then on.
        tile_px: Side of the tiles: some more than the student's, of which views are cut.
        quality: Of the JPEGs.
        threads: That read and compress.
        licence: Of the tiles, as their README is to state it; a student's is no less strict.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.distill.data.packing import pack_slides
    from atlas_edge.system.atomic import write_atomic
    from atlas_edge.tiles.slide_tiles import slides_of

    specs = [spec for given in slides for spec in slides_of(given)]
    if not specs:
        raise InputError("no slides are given", hint="give slides, or folders of them")
    try:
        with Display(screen, 0) as display:
            found = pack_slides(specs, out, tile_px=tile_px, quality=quality, threads=threads, progress=display.slides)
        if licence is not None:
            write_atomic(out / "README.md", f"Licence: {licence}\n".encode())
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}",
            hint="make room or choose another --out; the same command goes on with what is there",
        ) from error
    if output.json:
        print_json(asdict(found))
    else:
        screen.print(f"{out}: {found.tiles:,} tiles in {found.shards} shards, {found.made} made now", soft_wrap=True)
    if found.left_out:
        slide, why = next(iter(found.left_out.items()))
        raise InputError(
            f"{len(found.left_out)} of {len(specs)} slides are left out, the first {slide}: {why}",
            hint="what is packed is whole; mend them and give the same command again",
        )
