"""Tissue tiles of slides as WebDataset tars: cut and compressed once, read at any place from then on."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from atlas_edge.errors import AtlasError, InputError, UsageError
from atlas_edge.system.atomic import write_atomic
from atlas_edge.tiles.forms.webdataset import ABOUT, tar_shard
from atlas_edge.tiles.slide_spec import SlideSpec
from atlas_edge.tiles.slide_tiles import SlideTiles
from atlas_edge.tiles.source import TileRecord, ahead

# A shard is put together in memory: some 30 MB at 256 px.
_SHARD_TILES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PackResult:
    """What a run wrote.

    Attributes:
        shards: In the folder, of the slides that were given.
        made: Of them by this run.
        tiles: In those shards.
        left_out: Slide -> why.
    """

    shards: int
    made: int
    tiles: int
    left_out: dict[str, str]


def pack_slides(
    slides: Sequence[SlideSpec],
    out: Path,
    *,
    tile_px: int,
    quality: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackResult:
    """Write the shards that are missing; those that are there are kept. A slide that cannot be read is left out.

    Args:
        slides: At which µm per pixel they are cut.
        out: Folder.
        tile_px: Side of the tiles.
        quality: Of the JPEGs, 1-100; colour at full resolution.
        threads: That read and compress.
        progress: Called with slides done and slides in all.

    Raises:
        UsageError: The folder holds tiles of another side, quality or range of µm per pixel, or is none.
        InputError: No slide can be packed.
        OSError: The folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder to write", hint="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    spans = {spec.mpp_range for spec in slides}
    span = spans.pop() if len(spans) == 1 else None
    _check_alike(out / ABOUT, {"tile_px": tile_px, "quality": quality, "mpp_range": span and list(span)})
    shards = made = tiles = 0
    left_out: dict[str, str] = {}
    for number, spec in enumerate(slides):
        progress(number, len(slides))
        try:
            source = SlideTiles(spec, tile_px=tile_px)
            try:
                for path, records in _shards_of(source, spec, out):
                    if not path.is_file():
                        _write(path, source, records, quality, threads)
                        made += 1
                    shards, tiles = shards + 1, tiles + len(records)
            finally:
                source.close()
        except AtlasError as error:
            left_out[str(spec.path)] = error.message
    progress(len(slides), len(slides))
    if not shards:
        raise InputError(
            f"none of {len(slides)} slides can be packed: {next(iter(left_out.values()))}",
            hint="give slides that can be read, at µm per pixel that they have",
        )
    return PackResult(shards=shards, made=made, tiles=tiles, left_out=left_out)


def _shards_of(source: SlideTiles, spec: SlideSpec, out: Path) -> Iterator[tuple[Path, Sequence[TileRecord]]]:
    """Places of a slide's shards; another slide of its name, or the same one cut otherwise, has others."""
    listing = source.listing()
    known = hashlib.sha256(f"{source.fingerprint()}:{spec.mpps}:{spec.mpp_range}".encode()).hexdigest()[:8]
    for start in range(0, len(listing), _SHARD_TILES):
        name = f"{source.slide_name}-{known}-{start // _SHARD_TILES:03d}.tar"
        yield out / name, listing[start : start + _SHARD_TILES]


def _write(path: Path, source: SlideTiles, records: Sequence[TileRecord], quality: int, threads: int) -> None:
    def sample(record: TileRecord) -> tuple[str, bytes, dict[str, Any]]:
        buffer = io.BytesIO()
        Image.fromarray(source.read(record)).save(buffer, "JPEG", quality=quality, subsampling=0)
        _, x, y = record.locator
        facts = {"slide": record.group, "mpp": record.mpp, "x": x, "y": y}
        return record.id.replace("/", "_").replace(".", "p"), buffer.getvalue(), facts

    tar, index = tar_shard(ahead(sample, records, threads=threads, most=4 * threads))
    # The tar last: where it is, all is.
    write_atomic(path.with_suffix(".npz"), index)
    write_atomic(path, tar)


def _check_alike(about: Path, wanted: dict[str, Any]) -> None:
    if not about.exists():
        write_atomic(about, (json.dumps(wanted) + "\n").encode())
        return
    try:
        found = json.loads(about.read_bytes())
    except ValueError as error:
        raise InputError(f"{about} is no JSON: {error}", hint="choose another --out") from error
    if found != wanted:
        raise UsageError(
            f"{about.parent} holds tiles of {found}, now {wanted}", hint="give the same options, or another --out"
        )
