"""`atlas-embed`: slides in, embeddings out."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from atlas_edge.cli import console, make_app, print_json, run_app, set_verbosity
from atlas_edge.errors import UsageError

HELP = """Embed the tissue of whole slides with a bundle.

Example:

    atlas-embed scan.svs --bundle atlas2-s-openvino-int8 --out scan.h5

A run that was killed goes on where it stopped when the same command is given again.
"""

app = make_app("atlas-embed", HELP)

Flag = Annotated[bool, Parameter(negative="")]


@app.default
def embed(
    slides: list[Path],
    /,
    *,
    bundle: str,
    out: Path,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    min_tissue: float = 0.1,
    tissue: bool = True,
    max_unreadable: float = 0.01,
    threads: int = 1,
    batch: int = 32,
    overwrite: Flag = False,
    json: Flag = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
) -> None:
    """Embed slides.

    Args:
        slides: Slide files.
        bundle: Bundle folder (or a model, which then runs in PyTorch).
        out: HDF5 file for one slide, a folder for several.
        mpp: µm per pixel of slides that do not say it.
        tile_mpp: µm per pixel of tiles; the encoder's own by default.
        min_tissue: Least share of tissue in a tile, 0-1.
        tissue: Look for tissue; --no-tissue embeds the whole grid.
        max_unreadable: Largest share of unreadable tiles that a slide may have, 0-1.
        threads: Decode threads.
        batch: Tiles a batch.
        overwrite: Replace outputs that are there.
        json: Results as JSON on stdout.
        quiet: Say nothing but errors.
        verbose: Say more.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    from atlas_edge.bundle import MANIFEST, sha256_file
    from atlas_edge.embed.slide import EmbedConfig, embed_slide
    from atlas_edge.models import load_encoder

    try:
        config = EmbedConfig(
            mpp=mpp,
            tile_mpp=tile_mpp,
            min_tissue=min_tissue,
            tissue=tissue,
            max_unreadable=max_unreadable,
            threads=threads,
            batch=batch,
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {first['input']}: {first['msg']}", hint="see atlas-embed --help") from error
    outputs = _outputs(slides, out, overwrite=overwrite)
    encoder = load_encoder(bundle)
    manifest = Path(bundle) / MANIFEST
    sha256 = sha256_file(manifest) if manifest.is_file() else ""
    said = console(quiet=quiet)
    if encoder.spec.random_weights:
        said.print(f"WARNING: {encoder.spec.name} has random weights: its embeddings mean nothing")
    results = []
    try:
        for slide, target in zip(slides, outputs, strict=True):
            result = embed_slide(slide, encoder, target, config, bundle_sha256=sha256)
            results.append(dataclasses.asdict(result))
            said.print(
                f"{slide.name}: {result.tiles} tiles at {result.mpp:.3g} µm per pixel in {result.seconds:.1f} s "
                f"({result.tiles_per_s:.0f} tiles/s), {len(result.unreadable)} unreadable, {result.resumed_tiles} "
                f"from an earlier run -> {target}"
            )
    finally:
        encoder.close()
    if json:
        print_json({"slides": results})


def main() -> None:
    """Run the command."""
    sys.exit(run_app(app))


def _outputs(slides: list[Path], out: Path, *, overwrite: bool) -> list[Path]:
    several = len(slides) > 1 or out.is_dir()
    outputs = [out / f"{slide.stem}.h5" for slide in slides] if several else [out]
    if several and out.is_file():
        raise UsageError(f"{out} is a file, expected a folder for {len(slides)} slides", hint="choose another --out")
    twice = sorted({str(path) for path in outputs if outputs.count(path) > 1})
    if twice:
        raise UsageError(f"two slides would both be written to {twice[0]}", hint="embed them one by one")
    there = [path for path in outputs if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} exists", hint="add --overwrite to replace it")
    return outputs
