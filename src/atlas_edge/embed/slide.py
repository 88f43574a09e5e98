"""One slide through an encoder: decode ahead in threads, embed in order, keep what was done."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from atlas_edge.atomic import write_atomic
from atlas_edge.embed.journal import Journal
from atlas_edge.embed.output import write_hdf5
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides import Slide, TileGrid, TileReader, find_tissue, open_slide, plan_grid
from atlas_edge.slides.open import check_file
from atlas_edge.slides.reader import ReadTiles

_CHECKPOINT_S = 2.0


class EmbedConfig(BaseModel):
    """How slides are embedded.

    Attributes:
        mpp: µm per pixel of slides that do not say it.
        tile_mpp: µm per pixel of tiles; the encoder's own when None.
        min_tissue: Least share of tissue in a tile.
        tissue: Look for tissue; False embeds the whole grid.
        max_unreadable: Largest share of unreadable tiles that a slide may have.
        threads: Decode threads.
        batch: Tiles a batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mpp: float | None = Field(default=None, gt=0)
    tile_mpp: float | None = Field(default=None, gt=0)
    min_tissue: float = Field(default=0.1, ge=0, le=1)
    tissue: bool = True
    max_unreadable: float = Field(default=0.01, ge=0, le=1)
    threads: int = Field(default=1, ge=1, le=64)
    batch: int = Field(default=32, ge=1, le=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideResult:
    """What was written. `tiles_per_s` covers this run's tiles only, from opening the slide to the finished file."""

    slide: str
    out: str
    tiles: int
    resumed_tiles: int
    unreadable: dict[str, str]
    mpp: float
    level: int
    seconds: float
    tiles_per_s: float


def embed_slide(
    path: Path,
    encoder: Encoder,
    out: Path,
    config: EmbedConfig,
    *,
    bundle_sha256: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> SlideResult:
    """Embed a slide's tissue into an HDF5 file, going on where a killed run of the same plan stopped.

    Args:
        path: Slide.
        encoder: What embeds.
        out: HDF5 file to write, replaced if it is there.
        config: See `EmbedConfig`.
        bundle_sha256: SHA-256 of the bundle's manifest, for the attributes.
        progress: Called with tiles done and tiles in all.

    Raises:
        InputError: The slide is damaged, has no tissue, too many unreadable tiles, or changed while it was read.
        UsageError: Nobody said how many µm per pixel the encoder wants.
    """
    begun = time.perf_counter()
    mpp = config.tile_mpp or encoder.spec.mpp
    if mpp is None:
        raise UsageError(f"{encoder.spec.name} does not say its µm per pixel", hint="add --tile-mpp 0.5")
    check_file(path)
    before = _identity(path)
    slide = open_slide(path, mpp=config.mpp)
    try:
        grid = _plan(slide, encoder, out, config, mpp)
        journal = Journal(out, _plan_of(before, encoder, grid, config, bundle_sha256), encoder.spec.embed_dim)
        resumed = journal.rows
        try:
            _run(TileReader(slide, grid), encoder, journal, config, progress)
            if _identity(path) != before:
                journal.remove()
                raise InputError(f"{path} changed while it was read", hint="wait until the scanner has finished it")
            count = write_hdf5(out, journal, grid, _attributes(slide, encoder, grid, bundle_sha256))
        finally:
            journal.close()
    finally:
        slide.close()
    unreadable = {str(grid.coords[index].tolist()): reason for index, reason in journal.unreadable.items()}
    journal.remove()
    seconds = time.perf_counter() - begun
    return SlideResult(
        slide=str(path),
        out=str(out),
        tiles=count,
        resumed_tiles=resumed,
        unreadable=unreadable,
        mpp=grid.mpp,
        level=grid.level,
        seconds=seconds,
        tiles_per_s=(len(grid.coords) - resumed) / seconds,
    )


def _plan(slide: Slide, encoder: Encoder, out: Path, config: EmbedConfig, mpp: float) -> TileGrid:
    mask = find_tissue(slide) if config.tissue else None
    grid = plan_grid(slide, mask, tile_px=encoder.spec.tile_px, mpp=mpp, min_tissue=config.min_tissue)
    out.parent.mkdir(parents=True, exist_ok=True)
    if mask is not None:
        import io

        buffer = io.BytesIO()
        mask.image().save(buffer, "PNG")
        write_atomic(out.with_suffix(".mask.png"), buffer.getvalue())
    if len(grid.coords) == 0:
        raise InputError(f"{slide.path} has no tissue", hint="look at the mask beside the output, or add --no-tissue")
    return grid


def _run(
    reader: TileReader,
    encoder: Encoder,
    journal: Journal,
    config: EmbedConfig,
    progress: Callable[[int, int], None] | None,
) -> None:
    total = len(reader.grid.coords)
    limit = int(config.max_unreadable * total)
    saved = time.monotonic()
    for start, read in _decoded(reader, journal.rows, config):
        journal.append(
            encoder.encode(read.pixels), {start + index: reason for index, reason in read.unreadable.items()}
        )
        if len(journal.unreadable) > limit:
            reason = next(iter(journal.unreadable.values()))
            raise InputError(
                f"{len(journal.unreadable)} of {total} tiles are unreadable, at most {limit} may be: {reason}",
                hint="copy the slide again, or add --max-unreadable 0.05",
            )
        if time.monotonic() - saved > _CHECKPOINT_S:
            journal.checkpoint()
            saved = time.monotonic()
        if progress is not None:
            progress(journal.rows, total)
    journal.checkpoint()


def _decoded(reader: TileReader, first: int, config: EmbedConfig) -> Iterator[tuple[int, ReadTiles]]:
    """Batches in order, decoded by threads that stay at most `threads` + 1 batches ahead."""
    coords, waiting = reader.grid.coords, deque[tuple[int, "Future[ReadTiles]"]]()
    pool = ThreadPoolExecutor(config.threads, thread_name_prefix="decode")
    try:
        for start in range(first, len(coords), config.batch):
            waiting.append((start, pool.submit(reader.read, coords[start : start + config.batch])))
            if len(waiting) > config.threads + 1:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _plan_of(
    identity: list[int], encoder: Encoder, grid: TileGrid, config: EmbedConfig, bundle_sha256: str
) -> dict[str, Any]:
    # Through JSON unchanged: lists, strings and numbers only.
    return {
        "slide": identity,
        "encoder": encoder.spec.model_dump(mode="json"),
        "runtime": encoder.runtime,
        "bundle": bundle_sha256,
        "batch": config.batch,
        "coords": hashlib.sha256(grid.coords.tobytes()).hexdigest(),
        "grid": [grid.level, grid.scale_x, grid.scale_y],
    }


def _attributes(slide: Slide, encoder: Encoder, grid: TileGrid, bundle_sha256: str) -> dict[str, Any]:
    return {
        "slide": slide.path.name,
        "slide_mpp": slide.mpp_x,
        "vendor": slide.vendor,
        "encoder": encoder.spec.name,
        "random_weights": encoder.spec.random_weights,
        "runtime": encoder.runtime,
        "bundle_sha256": bundle_sha256,
        "embed_dim": encoder.spec.embed_dim,
        "mpp": grid.mpp,
        "level": grid.level,
        "tile_px": grid.tile_px,
    }
