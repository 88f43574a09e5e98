"""Pen on a slide, told by its strokes: stains come in every colour that pens have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.options import Stain

_SECTOR_DEGREES, _SECTOR_STEP = 60, 30  # overlapping: every hue lies in the middle half of one
# Hues of haematoxylin, eosin, DAB and what else stains tissue red to violet: ink of these is more saturated.
_STAIN_HUES = (220, 45)  # degrees, through red
_STAIN_SATURATION, _OTHER_SATURATION, _VIVID_SATURATION = 165, 100, 200
_GREY_SATURATION, _GREY_DARKNESS = 60, 60
_BLACK_DARKNESS = 195  # no channel reaches 45
_SMALLEST_PX = 60
_SPECK_PX = 4
_MOST_TEXTURE = 7.0
_RING_PX = 4
_EDGE = 0.7  # of what is inside, at most, 3 and 4 pixels outside
_STROKE_LENGTH, _STROKE_EVENNESS, _STROKE_HALF_WIDTH_PX = 2.5, 0.4, 4


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of pen where the stain is known.

    Attributes:
        foreign_hues: From and to, degrees: what has them is no tissue, in any shape.
        strokes: Coloured strokes may be pen.
        grey: Grey strokes may be pen, and black borders borders.
    """

    foreign_hues: tuple[int, int] | None = None
    strokes: bool = True
    grey: bool = True


_NOTHING_KNOWN = _Known()
_KNOWN: dict[Stain, _Known] = {
    # Haematoxylin is blue to violet, eosin rose to red, blood orange.
    "he": _Known(foreign_hues=(45, 235)),
    # DAB is brown, and haematoxylin alone bluer than beside eosin.
    "ihc": _Known(foreign_hues=(60, 190)),
    "special": _Known(strokes=False),
    "dark": _Known(grey=False),
}


def find_ink(
    rgb: NDArray[np.uint8], foreground: NDArray[np.bool_], darkness: NDArray[np.int16], stain: Stain | None = None
) -> NDArray[np.bool_]:
    """Strokes and dots of pen, and black borders, on a thumbnail of 8 µm per pixel.

    The foreground is parted by hue, and each piece is looked at. Tissue has texture at this scale: nuclei, fibres,
    lumina. Ink is even, since it lies above, and ends sharply. Such a piece is ink where it is a stroke, that is long
    and of one width, and more saturated than stains of its hue get, or dark; or, in any shape, where it is vivid. An
    even black piece along the rim is a border. Haematoxylin, eosin, DAB and the other stains of red to violet may be
    stronger than stains of yellow to blue before they are doubted. A dot of pen in a colour that stains have stays.

    Where the stain is known so is more: H&E (`he`) and DAB with haematoxylin (`ihc`) have no green, nor H&E yellow to
    blue, and what has is ink in any shape; special stains (`special`) have strokes in every colour, which are never
    ink; silver, melanin and coal (`dark`) are grey and black, which is none then.

    Args:
        rgb: `(H, W, 3)`, its glass at 240.
        foreground: `(H, W)`: not glass.
        darkness: `(H, W)`: the glass less the strongest channel.
        stain: Where it is known.
    """
    ink = np.zeros(foreground.shape, dtype=bool)
    if not foreground.any():
        return ink
    known = _NOTHING_KNOWN if stain is None else _KNOWN[stain]
    hue, saturation = _hue_and_saturation(rgb)
    texture = _texture(rgb)
    if known.foreign_hues is not None:
        first, last = known.foreign_hues
        foreign = foreground & (hue >= first) & (hue < last) & (saturation > _OTHER_SATURATION)
        ink |= _without_specks(foreign)
    for start in range(0, 360 if known.strokes else 0, _SECTOR_STEP):
        middle = start + _SECTOR_DEGREES / 2
        least = _STAIN_SATURATION if middle >= _STAIN_HUES[0] or middle <= _STAIN_HUES[1] else _OTHER_SATURATION
        sector = foreground & (saturation > least) & ((hue - start) % 360 < _SECTOR_DEGREES)
        for piece, box in _pieces(sector):
            if abs(np.median((hue[box][piece] - start) % 360) - _SECTOR_DEGREES / 2) > _SECTOR_STEP / 2:
                continue  # cut off where the sector ends; whole in another
            vivid = np.median(saturation[box][piece]) > _VIVID_SATURATION
            if _is_even(piece, texture[box]) and _ends_sharply(piece, saturation[box]) and (vivid or _is_stroke(piece)):
                ink[box] |= piece
    if not known.grey:
        return ink
    grey = (saturation < _GREY_SATURATION) & (darkness > _GREY_DARKNESS)
    for piece, box in _pieces(foreground & (grey | (darkness > _BLACK_DARKNESS))):
        if _is_even(piece, texture[box]) and (
            (_ends_sharply(piece, darkness[box]) and _is_stroke(piece))
            or (_lies_along_rim(piece, box, ink.shape) and np.median(darkness[box][piece]) > _BLACK_DARKNESS)
        ):
            ink[box] |= piece
    return ink


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Nuclei that lie close make a pixel or two that are bluer than haematoxylin is."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.asarray(mask & (np.bincount(labels.ravel())[labels] >= _SPECK_PX))


def _hue_and_saturation(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hue in degrees and HSV saturation of 0-255, each `(H, W)`."""
    red, green, blue = (rgb[..., channel].astype(np.float32) for channel in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    span = np.maximum(high - low, 1e-6)
    sixth = np.where(
        high == red, (green - blue) / span, np.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    )
    return (sixth * 60 % 360).astype(np.float32), ((high - low) * 255 / np.maximum(high, 1)).astype(np.float32)


def _texture(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Standard deviation of the brightness over 3 x 3 pixels."""
    from scipy import ndimage

    grey = np.add(rgb[..., 0], rgb[..., 1], dtype=np.float32)
    grey = (grey + rgb[..., 2]) / 3
    mean = ndimage.uniform_filter(grey, 3)
    variance: NDArray[np.float32] = ndimage.uniform_filter(grey * grey, 3) - mean * mean
    return np.sqrt(np.maximum(variance, 0))


def _pieces(mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], tuple[slice, slice]]]:
    """Connected pieces of some size: each as a mask of a box around it, and the box."""
    from scipy import ndimage

    height, width = mask.shape
    if np.count_nonzero(mask) < _SMALLEST_PX:
        return
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        if sizes[label] >= _SMALLEST_PX:
            box = (
                slice(max(rows.start - _RING_PX, 0), min(rows.stop + _RING_PX, height)),
                slice(max(columns.start - _RING_PX, 0), min(columns.stop + _RING_PX, width)),
            )
            yield labels[box] == label, box


def _is_even(piece: NDArray[np.bool_], texture: NDArray[np.float32]) -> bool:
    from scipy import ndimage

    inside = ndimage.binary_erosion(piece, np.ones((3, 3)))
    return bool(inside.any() and np.median(texture[inside]) < _MOST_TEXTURE)


def _ends_sharply(piece: NDArray[np.bool_], strength: NDArray[Any]) -> bool:
    from scipy import ndimage

    around = ndimage.binary_dilation(piece, np.ones((3, 3)), iterations=_RING_PX)
    ring = around & ~ndimage.binary_dilation(piece, np.ones((3, 3)), iterations=_RING_PX - 2)
    return not ring.any() or bool(np.median(strength[ring]) < _EDGE * np.median(strength[piece]))


def _is_stroke(piece: NDArray[np.bool_]) -> bool:
    """Whether a piece is long and of one width: of a bar's pixels the mean distance to the edge is half the largest."""
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    widest = float(distance.max())
    long = piece.sum() / (4 * widest**2) > _STROKE_LENGTH
    return bool(long and widest >= _STROKE_HALF_WIDTH_PX and distance[piece].mean() / widest > _STROKE_EVENNESS)


def _lies_along_rim(piece: NDArray[np.bool_], box: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    rows, columns = box
    touching = max(
        piece[0].sum() if rows.start == 0 else 0,
        piece[-1].sum() if rows.stop == shape[0] else 0,
        piece[:, 0].sum() if columns.start == 0 else 0,
        piece[:, -1].sum() if columns.stop == shape[1] else 0,
    )
    return bool(touching >= max(piece.any(axis=0).sum(), piece.any(axis=1).sum()) / 2)
