"""Colour and image shifts that real scanners and stainers cause: for stress tests and for augmentation.

All functions take and give one tile, `(H, W, 3)` uint8 RGB, and are deterministic. Only numpy and Pillow are needed.
"""

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Tile = NDArray[np.uint8]
Scanner = Literal["nanozoomer-s210", "nanozoomer-2ht", "pannoramic-1000", "aperio-gt450"]

# Optical density of haematoxylin, eosin and DAB: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001), table 1.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
RGB_FROM_HED = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)

# Keeps the logarithm of a black pixel finite.
_BLACK = 1.0

# What each scanner makes of the optical densities (R, G, B) that an Aperio CS2 records: row = density in, column =
# density out. White stays white. Least squares, with a small ridge towards per-channel gains, over registered scans
# of one slide on five scanners (MultiScanner_SCC, Wilm et al. 2023), blurred by 2 px; it explains 75-96 % of the
# variance.
SCANNERS: Mapping[Scanner, NDArray[np.float64]] = MappingProxyType(
    {
        "nanozoomer-s210": np.array([[0.567, 0.074, 0.071], [-0.014, 0.683, -0.016], [-0.015, -0.022, 0.538]]),
        "nanozoomer-2ht": np.array([[1.137, -0.037, 0.044], [0.004, 0.999, -0.011], [0.002, 0.0, 0.68]]),
        "pannoramic-1000": np.array([[0.568, -0.066, 0.03], [0.005, 0.935, 0.002], [-0.022, -0.022, 0.369]]),
        "aperio-gt450": np.array([[0.491, 0.018, 0.014], [0.007, 0.371, 0.003], [0.002, -0.011, 0.342]]),
    }
)


def shift_hed(
    tile: Tile,
    *,
    haematoxylin: float = 1.0,
    eosin: float = 1.0,
    residual: float = 1.0,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tile:
    """Make the stains stronger or weaker.

    The tile is unmixed into optical densities by Ruifrok and Johnston's stain matrix, each density d becomes
    gain * d + offset (Tellez et al., Medical Image Analysis 58, 2019), and the mix is turned back into light.

    Args:
        tile: `(H, W, 3)` uint8 RGB.
        haematoxylin: Gain of the haematoxylin density; 1 leaves it.
        eosin: Gain of the eosin density.
        residual: Gain of the third direction.
        offset: Added to the three densities.
    """
    stains = stain_densities(tile)
    gain = np.array([haematoxylin, eosin, residual])
    # Unmixing leaves small negative densities: more of a stain that is not there must not brighten the tile.
    stains = stains + (gain - 1.0) * np.maximum(stains, 0.0) + np.array(offset)
    return mix_stains(stains)


def as_scanner(tile: Tile, scanner: Scanner, *, strength: float = 1.0) -> Tile:
    """Recolour a tile as another scanner would have recorded it.

    Args:
        tile: `(H, W, 3)` uint8 RGB; taken as if it came from an Aperio CS2.
        scanner: One of `SCANNERS`.
        strength: 0 leaves the tile, 1 is the whole shift, values between blend the two matrices.
    """
    matrix = (1.0 - strength) * np.eye(3) + strength * SCANNERS[scanner]
    return shift_colour(tile, matrix)


def shift_colour(tile: Tile, matrix: NDArray[np.float64]) -> Tile:
    """Multiply the optical densities of a tile by a `(3, 3)` matrix (row = density in, column = density out)."""
    return _to_light(_to_density(tile) @ matrix)


def stain_densities(tile: Tile) -> NDArray[np.float64]:
    """Optical densities of haematoxylin, eosin and the third direction, `(H, W, 3)`; about 0 for empty glass."""
    densities: NDArray[np.float64] = _to_density(tile) @ HED_FROM_RGB
    return densities


def mix_stains(densities: NDArray[np.float64]) -> Tile:
    """The tile that has these densities, `(H, W, 3)`: undoes `stain_densities`."""
    return _to_light(densities @ RGB_FROM_HED)


def recompress(tile: Tile, *, quality: int) -> Tile:
    """Write the tile as a JPEG (4:2:0) of this quality (1-95) and read it back."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def blur(tile: Tile, *, radius_px: float) -> Tile:
    """Defocus: a Gaussian whose standard deviation is `radius_px`."""
    blurred = Image.fromarray(tile).filter(ImageFilter.GaussianBlur(radius_px))
    return np.asarray(blurred, dtype=np.uint8)


def magnify(tile: Tile, *, factor: float) -> Tile:
    """The tile as if it had been cut at `factor` times its µm per pixel, about the same centre.

    Below 1 the middle is enlarged; above 1 the tile is made smaller, and what lies outside it is its own mirror image.
    """
    height, width = tile.shape[:2]
    rows, columns = (round(side * factor) for side in (height, width))
    if factor < 1:
        top, left = (height - rows) // 2, (width - columns) // 2
        seen = tile[top : top + rows, left : left + columns]
    else:
        beside = [
            ((size - side) // 2, size - side - (size - side) // 2) for size, side in ((rows, height), (columns, width))
        ]
        seen = np.pad(tile, (*beside, (0, 0)), mode="symmetric")
    resized = Image.fromarray(seen).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(resized, dtype=np.uint8)


def _to_density(tile: Tile) -> NDArray[np.float64]:
    """Optical density, 0 for white, base 10."""
    scale = 255.0 + _BLACK
    table = -np.log10((np.arange(256) + _BLACK) / scale)
    density: NDArray[np.float64] = table[tile]
    return density


def _to_light(density: NDArray[np.float64]) -> Tile:
    light = 10.0**-density * (255.0 + _BLACK) - _BLACK
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)
