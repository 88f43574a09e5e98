"""Where tissue is: what differs from the glass, without pen and black borders."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.options import Stain
from atlas_edge.slides.slide import Slide, Survey
from atlas_edge.slides.tissue.ink import find_ink

MASK_MPP = 8.0
PICTURE_PX = 1400

_LOGGER = logging.getLogger(__name__)
_MOST_PIXELS = 2**26  # of a mask: larger slides get a coarser one
_MOST_REJECTED = 0.02
# Otsu finds two classes in anything. An empty slide's noise stays below the lower bound, a slide that is tissue all
# over above the upper one.
_LEAST_ABOVE_GLASS = 8  # CLAM's fixed threshold
_MOST_LOWER_BOUND = 14
_UPPER_BOUND = 50
_GLASS_SIGMAS = 5
# Grey stains, melanin and coal have no colour; a shadow on the glass stays below.
_LEAST_DARKNESS = 28
_GREY_REACH_PX = 3  # edges of coverslips, hairs and dust are narrower
_WHITE = 240  # what the glass is made: its noise has room above
_GLASS_LEAST, _GLASS_MOST_SATURATION = 170, 45
_FILL_SHARE, _FILL_GLASS_SHARE = 0.05, 0.3
_SMALLEST_PX = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueMask:
    """A mask over the whole slide.

    Attributes:
        tissue: `(h, w)` bool.
        rejected: `(h, w)` bool: coloured or dark, but pen or a black border.
        glass: Red, green and blue of the glass, 0-255; None where nobody looked.
        saturation_threshold: 0-255, what was used, with the glass made white; None where nobody looked.
        pixel_x: Level-0 pixels for each mask pixel, across.
        pixel_y: The same, downwards.
        picture: `(h, w, 3)` uint8, the slide at most `PICTURE_PX` wide and high; None where nobody looked.
        source: Name of the file that says where tissue is; None where it was found.
    """

    tissue: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    glass: tuple[int, int, int] | None
    saturation_threshold: int | None
    pixel_x: float
    pixel_y: float
    picture: NDArray[np.uint8] | None
    source: str | None = None

    @property
    def area_share(self) -> float:
        """Tissue's share of the slide, 0-1."""
        return float(self.tissue.mean())

    @property
    def rejected_share(self) -> float:
        """What was rejected, as a share of it and the tissue, 0-1."""
        rejected = float(self.rejected.sum())
        return rejected / max(rejected + float(self.tissue.sum()), 1)

    def image(self) -> Image.Image:
        """Greyscale image: 255 tissue, 96 rejected, 0 glass."""
        grey = np.where(self.tissue, 255, np.where(self.rejected, 96, 0))
        return Image.fromarray(grey.astype(np.uint8))


def find_tissue(
    slide: Slide, *, mpp: float = MASK_MPP, reject_pen: bool = True, stain: Stain | None = None
) -> TissueMask:
    """Find tissue on a thumbnail.

    The glass is the brightest colour that fills much of the slide; with the glass made white, tissue is what is
    coloured, or dark. The threshold on saturation (HSV) is 5 standard deviations above the glass, or Otsu's (IEEE
    Trans SMC 1979) where that is lower, within bounds. Pen and black borders are rejected (see `find_ink`), specks are
    dropped and small holes closed. What the scanner left out counts neither as glass nor as tissue; where the file is
    damaged counts as tissue: whoever reads the tiles there finds out and says so.

    Args:
        slide: The slide.
        mpp: µm per mask pixel.
        reject_pen: Look for pen and black borders.
        stain: Where it is known: what can be pen; see `find_ink`.

    Raises:
        InputError: Nothing of the slide can be read.
        RuntimeMissing: SciPy is not installed.
    """
    require_module("scipy", extra="slides")
    full = slide.levels[0]
    area_px = full.width * slide.mpp_x * full.height * slide.mpp_y
    survey = _resized(slide, slide.survey(max(mpp, (area_px / _MOST_PIXELS) ** 0.5)), mpp)
    if survey.damaged.all():
        raise InputError(f"{slide.path} cannot be read anywhere", hint="copy the slide again")
    seen = ~survey.damaged & ~survey.unscanned
    seen &= ~_filled(survey.pixels, seen)
    glass = _glass_colour(survey.pixels[seen])
    white = _made_white(survey.pixels, glass)
    saturation = saturation_of(white)
    darkness = _WHITE - white.max(axis=2).astype(np.int16)
    threshold = _glass_threshold(saturation[seen]) if seen.any() else _UPPER_BOUND
    foreground = seen & (
        (saturation > threshold) | _open(darkness > _darkness_threshold(darkness[seen]), _GREY_REACH_PX)
    )
    rejected = (
        seen & _grow(find_ink(white, foreground, darkness, stain), 2) if reject_pen else np.zeros_like(foreground)
    )
    height, width = foreground.shape
    mask = TissueMask(
        tissue=(_tidy(foreground & ~rejected) & seen & ~rejected) | survey.damaged,
        rejected=rejected,
        glass=glass,
        saturation_threshold=threshold,
        pixel_x=full.width / width,
        pixel_y=full.height / height,
        picture=small_picture(survey.pixels),
    )
    if mask.rejected_share > _MOST_REJECTED:
        _LOGGER.warning(
            "%s: %.0f %% of what is no glass looks like pen and is left out; --no-pen takes it for tissue",
            slide.path.name, 100 * mask.rejected_share,
        )  # fmt: skip
    return mask


def small_picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At most `PICTURE_PX` wide and high."""
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    return np.asarray(image)


def saturation_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """HSV saturation, `(H, W)` uint8, 0-255."""
    # Channel by channel: ten times as fast as along the last axis.
    red, green, blue = (rgb[..., channel] for channel in range(3))
    high = np.maximum(np.maximum(red, green), blue).astype(np.uint16)
    low = np.minimum(np.minimum(red, green), blue).astype(np.uint16)
    return np.asarray((high - low) * np.uint16(255) // np.maximum(high, 1), dtype=np.uint8)


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


def _resized(slide: Slide, survey: Survey, mpp: float) -> Survey:
    """At `mpp` both ways: levels differ from scanner to scanner, and kernels are in pixels."""
    height, width = survey.pixels.shape[:2]
    full = slide.levels[0]
    size = (min(round(full.width * slide.mpp_x / mpp), width), min(round(full.height * slide.mpp_y / mpp), height))
    if size == (width, height) or min(size) < 1 or size[0] * size[1] > _MOST_PIXELS:
        return survey
    pixels = Image.fromarray(survey.pixels).resize(size, Image.Resampling.BOX)
    damaged, unscanned = (
        np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 0
        for mask in (survey.damaged, survey.unscanned)
    )
    return Survey(pixels=np.asarray(pixels), damaged=damaged, unscanned=unscanned)


def _filled(pixels: NDArray[np.uint8], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pure white that was put where the scanner did not look: known by glass of another colour beside it."""
    white = seen & (pixels == 255).all(axis=2)
    rest = pixels[seen & ~white]
    if white.sum() < _FILL_SHARE * seen.sum() or not len(rest):
        return np.zeros_like(seen)
    glass = np.array(_glass_colour(rest), dtype=np.int16)
    is_glass = (np.abs(rest.astype(np.int16) - glass).max(axis=1) <= 3).mean() > _FILL_GLASS_SHARE
    return white if is_glass else np.zeros_like(seen)


def _glass_colour(pixels: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Red, green and blue of the brightest peak that is pale; white where a slide is tissue all over.

    Args:
        pixels: `(N, 3)`.
    """
    brightness = pixels.min(axis=1)
    pale = pixels[(brightness >= _GLASS_LEAST) & (saturation_of(pixels[None])[0] <= _GLASS_MOST_SATURATION)]
    if len(pale) <= len(pixels) / 100:
        return (255, 255, 255)
    brightness = pale.min(axis=1)
    counts = np.convolve(np.bincount(brightness, minlength=256), np.ones(5), mode="same")
    # The brightest local peak with a tenth of the highest one: pale tissue may fill more of a slide than glass does.
    peaks = [value for value in range(256) if counts[value] == counts[max(value - 4, 0) : value + 5].max()]
    peak = max(value for value in peaks if counts[value] >= counts.max() / 10)
    near = pale[np.abs(brightness.astype(np.int16) - peak) <= 2]
    red, green, blue = (int(value) for value in np.median(near, axis=0))
    return red, green, blue


def _made_white(pixels: NDArray[np.uint8], glass: tuple[int, int, int]) -> NDArray[np.uint8]:
    tables = [np.clip(np.rint(np.arange(256) * _WHITE / level), 0, 255).astype(np.uint8) for level in glass]
    return np.stack([tables[channel][pixels[..., channel]] for channel in range(3)], axis=2)


def _glass_threshold(saturation: NDArray[np.uint8]) -> int:
    otsu = otsu_threshold(saturation)
    below = saturation[saturation <= max(otsu, int(saturation.min()))].astype(np.float64)
    peak = int(np.bincount(below.astype(np.int64)).argmax())
    # Tissue adds to the right of the peak only: the glass's own spread shows on the left.
    sigma = float(np.sqrt(np.mean((below[below <= peak] - peak) ** 2)))
    lower = min(peak + _LEAST_ABOVE_GLASS, _MOST_LOWER_BOUND)
    above = peak + _GLASS_SIGMAS * sigma
    # Nearer to the peak Otsu's threshold would part the glass from its own noise.
    return int(np.clip(otsu if peak + 3 * sigma < otsu < above else above, lower, _UPPER_BOUND))


def _darkness_threshold(darkness: NDArray[np.int16]) -> float:
    # What is brighter than the glass shows the spread of what is as bright.
    brighter = darkness[darkness <= 0].astype(np.float64)
    return max(_LEAST_DARKNESS, _GLASS_SIGMAS * float(np.sqrt(np.mean(brighter**2))) if len(brighter) else 0.0)


def _tidy(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without specks and with small holes closed; septa of fat are thin, and stay."""
    from scipy import ndimage

    closed = _shrink(_grow(mask, 3), 3)
    labels, _ = ndimage.label(closed, structure=np.ones((3, 3)))
    # Specks are judged by what they were before neighbours were joined.
    sizes = np.bincount(labels.ravel(), weights=mask.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = sizes[labels] >= _SMALLEST_PX
    return kept


def _open(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    return _grow(_shrink(mask, pixels), pixels)


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    grown: NDArray[np.uint8] = ndimage.maximum_filter(mask.astype(np.uint8), 2 * pixels + 1, mode="nearest")
    return grown > 0


def _shrink(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    return ~_grow(~mask, pixels)
