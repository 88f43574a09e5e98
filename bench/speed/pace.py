"""Speed in the lab's terms: tiles a slide, slides an hour, and whether that keeps up with a scanner."""

import math
from dataclasses import dataclass

from atlas_edge.bench.options import MPP, SCANNER_SECONDS, SLIDE_MM2
from atlas_edge.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Whether an encoder keeps up with a scanner, with the arithmetic.

    Attributes:
        tiles_per_s: Throughput of the encoder.
        tile_um: Side of a tile on the slide, µm.
        tiles_per_slide: Tiles of one slide.
        slides_per_hour: Slides that the encoder embeds in an hour.
        slide_seconds: Seconds a slide.
        scanner_seconds: Seconds in which the scanner delivers one slide.
        needed_tiles_per_s: Throughput that would just keep up.
        keeps_up: Whether it does.
        arithmetic: The sums, a line each.
    """

    tiles_per_s: float
    tile_um: float
    tiles_per_slide: int
    slides_per_hour: float
    slide_seconds: float
    scanner_seconds: float
    needed_tiles_per_s: float
    keeps_up: bool
    arithmetic: tuple[str, ...]


def pace(
    tiles_per_s: float,
    *,
    tile_px: int,
    mpp: float = MPP,
    slide_mm2: float = SLIDE_MM2,
    tissue: float = 1.0,
    scanner_seconds: float = SCANNER_SECONDS,
) -> Pace:
    """Work out the pace.

    Args:
        tiles_per_s: Offline throughput; reading and decoding the slide come on top (OpenSlide reads about 930 tiles
            of 256 px a second and thread).
        tile_px: Side of a tile, pixels.
        mpp: µm per pixel.
        slide_mm2: Scanned area, mm².
        tissue: Share of the area that holds tissue and is embedded, above 0 to 1.
        scanner_seconds: Seconds that the scanner takes for that area.

    Raises:
        UsageError: A value out of range.
    """
    above_0 = {
        "--tile-px": tile_px,
        "--mpp": mpp,
        "--slide-mm2": slide_mm2,
        "--scanner-seconds": scanner_seconds,
        "--tiles-per-s": tiles_per_s,
    }
    for name, value in above_0.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name} {value} is not above 0")
    if not 0 < tissue <= 1:
        raise UsageError(f"--tissue {tissue} is not a share above 0 and up to 1")
    tile_um = tile_px * mpp
    tiles = max(1, round(slide_mm2 * 1e6 * tissue / tile_um**2))
    seconds = tiles / tiles_per_s
    needed = tiles / scanner_seconds
    share = "" if tissue == 1 else f" x {tissue:.0%} tissue"
    return Pace(
        tiles_per_s=tiles_per_s,
        tile_um=tile_um,
        tiles_per_slide=tiles,
        slides_per_hour=3600 / seconds,
        slide_seconds=seconds,
        scanner_seconds=scanner_seconds,
        needed_tiles_per_s=needed,
        keeps_up=tiles_per_s >= needed,
        arithmetic=(
            f"tile: {tile_px} px x {mpp:g} µm/px = {tile_um:g} µm",
            f"slide: {slide_mm2:g} mm²{share} / ({tile_um:g} µm)² = {tiles:,} tiles",
            f"time: {tiles:,} tiles / {tiles_per_s:.1f} tiles/s = {seconds:.0f} s = {3600 / seconds:.1f} slides/h",
            f"scanner: {scanner_seconds:g} s a slide = {3600 / scanner_seconds:.1f} slides/h, "
            f"which needs {tiles:,} / {scanner_seconds:g} = {needed:.1f} tiles/s",
        ),
    )
