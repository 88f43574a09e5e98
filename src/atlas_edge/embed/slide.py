"""One slide through an encoder: embed its tissue, keep what was done, write the file."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.fill import Filling, fill
from atlas_edge.embed.output.attributes import run_attributes, slide_attributes
from atlas_edge.embed.output.files import check_form, check_room, explained_disk_full, output_bytes, write_output
from atlas_edge.embed.output.geojson import write_geojson
from atlas_edge.embed.output.lock import output_lock
from atlas_edge.embed.output.overview import write_overview
from atlas_edge.embed.output.tokens import TOKENS, check_tokens, tokens_shape
from atlas_edge.embed.pipeline import MEASURES, StageClock, StageSeconds
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.embed.resume.plan import plan_of
from atlas_edge.embed.slide_files import SlideIdentity, slide_identity
from atlas_edge.encoder import Encoder, capabilities_of
from atlas_edge.errors import AtlasError, InputError, NoTissue, UsageError
from atlas_edge.slides import Slide, TileGrid, TileReader, TissueMask, find_tissue, open_slide, plan_grid
from atlas_edge.slides.colour import to_srgb
from atlas_edge.slides.open import check_file
from atlas_edge.slides.spread import spread_evenly
from atlas_edge.slides.tissue.given import given_mask
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.atomic import write_atomic

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What is wanted of a slide.

    Attributes:
        encoder: What embeds.
        out: File to write, replaced if it is there; see `write_output` for its forms.
        bundle_sha256: SHA-256 of the bundle's manifest, for the attributes.
    """

    encoder: Encoder
    out: Path
    bundle_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideResult:
    """What was written, and by which of `--devices` if any.

    `skipped_tiles` have tissue and were not to be embedded.
    `tiles_per_s` covers this run's tiles only, from opening the slide to the finished file. Where several encoders
    share what is decoded, `seconds` and `stages` are those of all of them.
    """

    slide: str
    out: str
    tiles: int
    resumed_tiles: int
    unreadable: dict[str, str]
    skipped_tiles: int
    mpp: float
    level: int
    seconds: float
    tiles_per_s: float
    stages: StageSeconds
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlan:
    """What would be embedded.

    Attributes:
        slide: Path.
        vendor: As the reader calls it.
        slide_mpp: µm per pixel of level 0.
        level: Level to read.
        mpp: µm per pixel of the tiles.
        tiles: Tiles to embed.
        skipped_tiles: Tiles with tissue besides.
        candidates: Tiles of the whole grid.
        size_bytes: Of the output, about.
    """

    slide: str
    vendor: str
    slide_mpp: float
    level: int
    mpp: float
    tiles: int
    skipped_tiles: int
    candidates: int
    size_bytes: int


def plan_slide(path: Path, spec: EncoderSpec, config: EmbedConfig) -> SlidePlan:
    """Open a slide and lay its grid, and embed nothing.

    Raises:
        InputError: See `embed_slide`.
        UsageError: See `embed_slide`.
    """
    config = config.of_slide(path)
    with closing(_open(path, config)) as slide:
        _, grid = _lay_grid(slide, spec, config)
        return SlidePlan(
            slide=str(path),
            vendor=slide.vendor,
            slide_mpp=slide.mpp_x,
            level=grid.level,
            mpp=grid.mpp,
            tiles=len(grid.coords),
            skipped_tiles=grid.skipped_tiles,
            candidates=grid.candidates,
            size_bytes=output_bytes(len(grid.coords), _row_bytes(spec, config), grid.skipped_tiles),
        )


def embed_slide(
    path: Path,
    encoder: Encoder,
    out: Path,
    config: EmbedConfig,
    *,
    bundle_sha256: str = "",
    progress: Callable[[int, int], None] | None = None,
    work: Path | None = None,
) -> SlideResult:
    """Embed a slide's tissue into one file, going on where a killed run of the same plan stopped.

    Args:
        path: Slide.
        encoder: What embeds.
        out: File to write, replaced if it is there; see `write_output` for its forms.
        config: See `EmbedConfig`.
        bundle_sha256: SHA-256 of the bundle's manifest, for the attributes.
        progress: Called with tiles done and tiles in all.
        work: Folder for what is kept of an unfinished slide; beside `out` when None.

    Raises:
        InputError: See `embed_slide_for`.
        UsageError: See `embed_slide_for`.
    """
    wanted = Embedding(encoder=encoder, out=out, bundle_sha256=bundle_sha256)
    (result,) = embed_slide_for([wanted], path, config, progress=progress, work=work)
    return result


def embed_slide_for(
    wanted: Sequence[Embedding],
    path: Path,
    config: EmbedConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    work: Path | None = None,
) -> list[SlideResult]:
    """Embed a slide's tissue by several encoders, each into a file of its own, decoding each tile once.

    Args:
        wanted: Encoders of one tile side and one µm per pixel, and their outputs.
        path: Slide.
        config: See `EmbedConfig`.
        progress: See `embed_slide`.
        work: See `embed_slide`.

    Raises:
        InputError: The slide is damaged, has no tissue, too many unreadable tiles, or changed while it was read; or
            the disk is full.
        UsageError: Nobody said how many µm per pixel the encoders want, or another process writes an output.
    """
    with ExitStack() as held:
        held.enter_context(explained_disk_full(wanted[0].out))
        for one in wanted:
            held.enter_context(output_lock(one.out))
        return _embed_locked(wanted, path, config.of_slide(path), progress, work)


def _embed_locked(
    wanted: Sequence[Embedding],
    path: Path,
    config: EmbedConfig,
    progress: Callable[[int, int], None] | None,
    work: Path | None,
) -> list[SlideResult]:
    begun, clock = time.perf_counter(), StageClock()
    for one in wanted:
        check_form(one.out)
        if config.tokens:
            check_tokens(one.out, one.encoder.spec)
    if config.geojson:
        require_module("contourpy", extra="slides")
    check_file(path)
    before = slide_identity(path)
    with closing(_open(path, config)) as slide, ExitStack() as journals:
        mask, grid = _lay_grid(slide, wanted[0].encoder.spec, config)
        for one in wanted:
            _save_mask(mask, one.out)
        if len(grid.coords) == 0:
            raise NoTissue(f"{path} has no tissue", hint="look at the mask beside the output, or add --no-tissue")
        fillings = []
        for one in wanted:
            kept = (work or one.out.parent) / one.out.name
            journal = _journal_of(one, kept, before, grid, config)
            journals.callback(journal.close)
            fillings.append(Filling(one.encoder, journal))
            for place in {one.out, kept}:
                held_rows = {"journal_rows": journal.rows, "row_bytes": journal.row_bytes}
                check_room(place, rows=len(grid.coords), skipped=grid.skipped_tiles, **held_rows)
        resumed = [filling.journal.rows for filling in fillings]
        with explained_disk_full(kept):
            fill(TileReader(slide, grid, _colours_of(slide, config)), fillings, config, clock, progress)
        if slide_identity(path) != before:
            for filling in fillings:
                filling.journal.remove()
            raise InputError(f"{path} changed while it was read", hint="wait until the scanner has finished it")
        for one, filling in zip(wanted, fillings, strict=True):
            with clock.stage("write"):
                _write(one, filling.journal, slide, before, mask, grid, config)
    seconds = time.perf_counter() - begun
    return [
        SlideResult(
            slide=str(path),
            out=str(one.out),
            tiles=len(grid.coords) - len(filling.journal.unreadable),
            resumed_tiles=rows,
            unreadable={str(grid.coords[index].tolist()): why for index, why in filling.journal.unreadable.items()},
            skipped_tiles=grid.skipped_tiles,
            mpp=grid.mpp,
            level=grid.level,
            seconds=seconds,
            tiles_per_s=(len(grid.coords) - rows) / seconds,
            stages=clock.seconds(slide.file_s),
        )
        for one, filling, rows in zip(wanted, fillings, resumed, strict=True)
    ]


def _journal_of(one: Embedding, kept: Path, identity: SlideIdentity, grid: TileGrid, config: EmbedConfig) -> Journal:
    spec = one.encoder.spec
    plan = _plan_of(identity, one.encoder, grid, config, one.bundle_sha256)
    return Journal(kept, plan, spec.embed_dim, _besides(spec, config))


def _write(
    one: Embedding,
    journal: Journal,
    slide: Slide,
    identity: SlideIdentity,
    mask: TissueMask | None,
    grid: TileGrid,
    config: EmbedConfig,
) -> None:
    about = slide_attributes(slide, identity, mask, grid)
    about |= run_attributes(one.encoder, journal.begun) | plan_of(one.encoder.spec, config, one.bundle_sha256)
    write_output(one.out, journal, grid, about)
    _write_beside(one.out, slide, mask, grid, journal, config)
    journal.remove()


def _open(path: Path, config: EmbedConfig) -> Slide:
    return open_slide(path, mpp=config.mpp, override=config.override_mpp, said_by=config.mpp_said_by)


def _lay_grid(slide: Slide, spec: EncoderSpec, config: EmbedConfig) -> tuple[TissueMask | None, TileGrid]:
    mpp = config.tile_mpp or spec.mpp
    if mpp is None:
        raise UsageError(f"{spec.name} does not say its µm per pixel", hint="add --tile-mpp 0.5")
    if spec.mpp_range is not None and not spec.mpp_range[0] <= mpp <= spec.mpp_range[1]:
        _LOGGER.warning("%s learnt tiles of %s, and these have %g", spec.name, spec.scales, mpp)
    mask = _mask_of(slide, config)
    wanted: dict[str, Any] = {"tile_px": spec.tile_px, "mpp": mpp, "overlap": config.overlap}
    grid = plan_grid(slide, mask, **wanted, min_tissue=config.min_tissue, rim=True)
    return mask, grid if config.most_tiles is None else spread_evenly(grid, config.most_tiles)


def _mask_of(slide: Slide, config: EmbedConfig) -> TissueMask | None:
    if config.mask is not None:
        return given_mask(config.mask, slide)
    return find_tissue(slide, reject_pen=config.pen, stain=config.stain) if config.tissue else None


def _colours_of(slide: Slide, config: EmbedConfig) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    if not config.icc:
        return None
    if slide.icc_profile is None:
        _LOGGER.warning("%s: it holds no ICC profile, and is embedded as it is stored", slide.path.name)
        return None
    return to_srgb(slide.icc_profile, slide.path)


def _save_mask(mask: TissueMask | None, out: Path) -> None:
    if mask is None:
        return
    import io

    buffer = io.BytesIO()
    mask.image().save(buffer, "PNG")
    write_atomic(out.with_suffix(".mask.png"), buffer.getvalue())


def _write_beside(
    out: Path, slide: Slide, mask: TissueMask | None, grid: TileGrid, journal: Journal, config: EmbedConfig
) -> None:
    """What is for people takes no embeddings with it where it cannot be written."""
    wanted: list[Callable[[], object]] = []
    if config.geojson:
        focus = journal.read(0, len(grid.coords), "focus")
        wanted.append(lambda: write_geojson(out, slide, mask, grid, journal.unreadable.keys(), focus))
    if config.overview:
        wanted.append(lambda: write_overview(out, slide, mask, grid, journal))
    for write in wanted:
        try:
            write()
        except (OSError, AtlasError, ValueError) as error:
            _LOGGER.warning("%s: embedded, but not everything beside it was written: %s", slide.path.name, error)


def _besides(spec: EncoderSpec, config: EmbedConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the journal keeps of each tile beside its embedding."""
    measures: dict[str, tuple[str, tuple[int, ...]]] = {name: ("<f4", ()) for name in MEASURES}
    return measures | ({TOKENS: ("<f2", tokens_shape(spec))} if config.tokens else {})


def _row_bytes(spec: EncoderSpec, config: EmbedConfig) -> int:
    return 4 * (spec.embed_dim + len(MEASURES)) + (2 * math.prod(tokens_shape(spec)) if config.tokens else 0)


def _plan_of(
    identity: SlideIdentity, encoder: Encoder, grid: TileGrid, config: EmbedConfig, bundle_sha256: str
) -> dict[str, Any]:
    able = capabilities_of(encoder)
    left_out = {} if grid.skipped is None else {"skipped": hashlib.sha256(grid.skipped.coords.tobytes()).hexdigest()}
    # Through JSON unchanged: lists, strings and numbers only.
    return {
        "slide": [identity.size_bytes, identity.mtime_ns],
        "encoder": encoder.spec.model_dump(mode="json"),
        "runtime": encoder.runtime,
        "bundle": bundle_sha256,
        "batch": [config.batch, able.batch, able.streams],
        "coords": hashlib.sha256(grid.coords.tobytes()).hexdigest(),
        "grid": [grid.level, grid.scale_x, grid.scale_y],
        "measures": list(MEASURES),
        "icc": config.icc,
        "tokens": config.tokens,
        **left_out,
    }
