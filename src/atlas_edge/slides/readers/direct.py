"""A shortcut past OpenSlide for plain JPEG tiles in a TIFF: the same pixels at a quarter of the time."""

import importlib.util
from typing import Any

import numpy as np

from atlas_edge.errors import InputError
from atlas_edge.slides.readers.openslide import OpenSlideFile
from atlas_edge.slides.readers.tiff import TiffSlide, check_segments, is_rgb
from atlas_edge.slides.slide import Slide

DIRECT_VENDORS = ("generic-tiff", "aperio")
_KNOWN_BY_OPENSLIDE = (
    "vendor", "levels", "unusable_levels", "stated_mpp", "bounds", "objective", "icc_profile", "icc_sha256",
    "quickhash",
)  # fmt: skip
_JPEG = 7
_PROBE_PX = 48


def open_direct(slide: OpenSlideFile, *, cache_bytes: int) -> Slide | None:
    """Read the TIFF's tiles ourselves where OpenSlide would only decode and convert them.

    OpenSlide decodes to premultiplied ARGB, which is then converted to RGB by Pillow; JPEG tiles that are decoded to
    RGB at once need neither. Whether the pixels agree is not assumed: a region of every level is read both ways.

    Args:
        slide: As OpenSlide opened it; closed where the shortcut is taken.
        cache_bytes: See `open_slide`.

    Returns:
        A slide with the same levels, or None where this is no such file, or the pixels differ.
    """
    if slide.vendor not in DIRECT_VENDORS or not all(map(importlib.util.find_spec, ("tifffile", "imagecodecs"))):
        return None
    try:
        direct = _DirectTiff(slide, cache_bytes=cache_bytes)
    except InputError:
        return None
    try:
        same = all(_agree(slide, direct, level) for level in range(len(slide.levels)))
    except InputError:
        # Damaged where it was probed: OpenSlide's handle is spent, and a new one says how.
        same = False
    if not same:
        direct.close()
        return None
    slide.close()
    return direct


class _DirectTiff(TiffSlide):
    """The pages of a TIFF that hold OpenSlide's levels."""

    def __init__(self, slide: OpenSlideFile, *, cache_bytes: int) -> None:
        self._slide = slide
        super().__init__(slide.path, cache_bytes=cache_bytes)

    def _describe(self) -> None:
        for name in _KNOWN_BY_OPENSLIDE:
            setattr(self, name, getattr(self._slide, name))
        self._pages = []
        for level in self.levels:
            size = (level.width, level.height)
            pages = [page for page in self._file.pages if (page.imagewidth, page.imagelength) == size]
            if not pages or not _is_plain(pages[0]):
                raise InputError(f"{self.path} is not made of JPEG tiles")
            check_segments(self.path, pages[0])
            self._pages.append(pages[0])


def _is_plain(page: Any) -> bool:
    colour = is_rgb(page) and page.samplesperpixel == 3 and page.planarconfig == 1
    return bool(page.is_tiled and page.compression == _JPEG and colour)


def _agree(slide: OpenSlideFile, direct: Slide, level: int) -> bool:
    size = slide.levels[level]
    # Where four tiles of the usual sizes meet, or in the middle of a small level.
    left, top = (
        max(min(side // 2 // 512 * 512, side - _PROBE_PX) - _PROBE_PX // 2, 0) for side in (size.width, size.height)
    )
    width, height = min(_PROBE_PX, size.width), min(_PROBE_PX, size.height)
    a, b = (reader.read(level, left, top, width, height) for reader in (slide, direct))
    return np.array_equal(a, b)
