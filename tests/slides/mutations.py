"""Slides with bytes of their headers changed, and the way that an embedding takes through them."""

import random
from collections.abc import Sequence
from pathlib import Path

import tifffile

from atlas_edge.slides import TileReader, find_tissue, open_slide, plan_grid

_LONGEST_VALUE = 64


def header_bytes(path: Path) -> list[int]:
    """Where a TIFF keeps its tags and what they point to (of long ones the beginning), SubIFDs with them."""
    spots: list[int] = list(range(8))
    with tifffile.TiffFile(path) as file:
        big, pages = file.is_bigtiff, list(file.pages)
        for page in pages:
            pages += list(page.pages or [])
            end = page.offset + (16 + 20 * len(page.tags) if big else 6 + 12 * len(page.tags))
            spots += range(page.offset, end)
            for tag in page.tags:
                if not page.offset <= tag.valueoffset < end:
                    spots += range(tag.valueoffset, tag.valueoffset + min(_LONGEST_VALUE, 2 * tag.count))
    size = path.stat().st_size
    return [spot for spot in spots if spot < size]


def mutated(data: bytes, spots: Sequence[int], seed: int) -> bytes:
    """One to sixteen bytes at some of the places with a bit flipped or another value."""
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(rng.choice([1, 2, 4, 16])):
        changed[rng.choice(spots)] ^= 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(1, 256)
    return bytes(changed)


def walk_through(path: Path) -> int:
    """Open a slide, find its tissue and read its tiles.

    Returns:
        Tiles that could be read.
    """
    slide = open_slide(path, mpp=0.5)
    try:
        grid = plan_grid(slide, find_tissue(slide), tile_px=64, mpp=slide.mpp_x)
        reader = TileReader(slide, grid)
        return sum(
            len(read.pixels) - len(read.unreadable)
            for read in (reader.read(grid.coords[start : start + 64]) for start in range(0, len(grid.coords), 64))
        )
    finally:
        slide.close()
