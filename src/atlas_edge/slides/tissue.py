"""Where tissue is: Otsu's threshold on saturation, without pen, dust and coverslip edges."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from atlas_edge.errors import InputError
from atlas_edge.slides.slide import Slide

MASK_MPP = 8.0

# Otsu finds two classes in anything. An empty slide's noise stays below the lower bound, a slide that is tissue all
# over above the upper one.
_LEAST_ABOVE_GLASS = 8  # CLAM's fixed threshold
_MOST_LOWER_BOUND = 14
_UPPER_BOUND = 50
_GLASS_SIGMAS = 5
_PEN_SATURATION = 110
_PEN_GREEN_OVER_RED = 25
_BLACK = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueMask:
    """A mask over the whole slide.

    Attributes:
        tissue: `(h, w)` bool.
        rejected: `(h, w)` bool: coloured or dark, but pen, dust or an edge.
        saturation_threshold: 0-255, what was used.
        pixel_x: Level-0 pixels for each mask pixel, across.
        pixel_y: The same, downwards.
    """

    tissue: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    saturation_threshold: int
    pixel_x: float
    pixel_y: float

    @property
    def area_share(self) -> float:
        """Tissue's share of the slide, 0-1."""
        return float(self.tissue.mean())

    def image(self) -> Image.Image:
        """Greyscale image: 255 tissue, 96 rejected, 0 glass."""
        grey = np.where(self.tissue, 255, np.where(self.rejected, 96, 0))
        return Image.fromarray(grey.astype(np.uint8))


def find_tissue(slide: Slide, *, mpp: float = MASK_MPP) -> TissueMask:
    """Find tissue on a thumbnail.

    Saturation (HSV) is smoothed and thresholded by Otsu's method (IEEE Trans SMC 1979) within bounds. Where strong
    and pale tissue lie on one slide that parts the two, so it is lowered to 5 standard deviations above the glass,
    which is the peak below it. Ink is rejected by colour (haematoxylin, eosin and DAB all leave green no stronger than
    red, unless pale; green and blue ink do), black marks and coverslip edges by darkness; specks are opened away and
    small holes closed. Where the file is damaged counts as tissue: whoever reads the tiles there finds out and says so.

    Args:
        slide: The slide.
        mpp: µm per mask pixel.

    Raises:
        InputError: Nothing of the slide can be read.
    """
    thumbnail, damaged = slide.survey(mpp)
    if damaged.all():
        raise InputError(f"{slide.path} cannot be read anywhere", hint="copy the slide again")
    smooth = np.asarray(Image.fromarray(thumbnail).filter(ImageFilter.MedianFilter(3)))
    saturation = saturation_of(smooth)
    threshold = _glass_threshold(saturation[~damaged])
    coloured = saturation > threshold
    rejected = _grow(is_artefact(smooth), 2)
    height, width = thumbnail.shape[:2]
    return TissueMask(
        tissue=_tidy(coloured & ~rejected) | damaged,
        rejected=rejected,
        saturation_threshold=threshold,
        pixel_x=slide.levels[0].width / width,
        pixel_y=slide.levels[0].height / height,
    )


def saturation_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """HSV saturation, `(H, W)` uint8, 0-255."""
    high = rgb.max(axis=2).astype(np.uint16)
    low = rgb.min(axis=2).astype(np.uint16)
    return np.asarray((high - low) * np.uint16(255) // np.maximum(high, 1), dtype=np.uint8)


def is_artefact(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pen (green, blue, black) and black borders, `(H, W)` bool."""
    red, green, blue = (rgb[..., channel].astype(np.int16) for channel in range(3))
    saturation = saturation_of(rgb)
    ink = (saturation > _PEN_SATURATION) & (green > red + _PEN_GREEN_OVER_RED)
    black = np.maximum(np.maximum(red, green), blue) < _BLACK
    return ink | black


def otsu_threshold(values: NDArray[np.uint8]) -> int:
    """The threshold with the most variance between the two classes; values above it are the upper one."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    weighted = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = weighted / below - (weighted[-1] - weighted) / above
    between = np.where((below > 0) & (above > 0), below * above * np.nan_to_num(difference) ** 2, 0)
    return int(between.argmax())


def _glass_threshold(saturation: NDArray[np.uint8]) -> int:
    otsu = otsu_threshold(saturation)
    below = saturation[saturation <= otsu].astype(np.float64)
    peak = int(np.bincount(below.astype(np.int64)).argmax())
    # Tissue adds to the right of the peak only: the glass's own spread shows on the left.
    sigma = float(np.sqrt(np.mean((below[below <= peak] - peak) ** 2)))
    lower = min(peak + _LEAST_ABOVE_GLASS, _MOST_LOWER_BOUND)
    return int(np.clip(min(otsu, peak + _GLASS_SIGMAS * sigma), lower, _UPPER_BOUND))


def _tidy(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    opened = _grow(_shrink(mask, 1), 1)
    return _shrink(_grow(opened, 3), 3)


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    return _filter(mask, ImageFilter.MaxFilter(2 * pixels + 1), pixels)


def _shrink(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    return _filter(mask, ImageFilter.MinFilter(2 * pixels + 1), pixels)


def _filter(mask: NDArray[np.bool_], kernel: ImageFilter.RankFilter, pad: int) -> NDArray[np.bool_]:
    # PIL leaves the border alone: continue it, so that tissue may touch the slide's edge.
    padded = np.pad(mask, pad, mode="edge").astype(np.uint8) * 255
    filtered = np.asarray(Image.fromarray(padded).filter(kernel)) > 127
    return filtered[pad:-pad, pad:-pad]
