"""Views of a tile, drawn from a seed so that a stored teacher feature can be paired with the view that it belongs to.

A view is drawn in two halves. The *stored* half (flip, rotation, crop and a base recolouring) is a function of tile
id and seed alone: teacher features are computed on it once and kept (TinyViT, Wu et al., ECCV 2022, arXiv:2207.10666,
section 3.1). The *fresh* half (another recolouring, blur) is drawn anew every epoch and shown to the student only,
while its target stays the teacher's answer to the stored half: the student learns to ignore what scanners do to
colour and focus.

Colour is moved in optical density, where stain and scanner differences are close to linear (Ruifrok & Johnston 2001;
Tellez et al. 2019): density (R, G, B) is multiplied by a random matrix near a multiple of the identity, and the
haematoxylin and eosin axes get gains of their own. The ranges are generic: no scanner's measured matrix is used, so
that measured scanners stay a fair test.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from atlas_edge.tiles.shifts import HED_FROM_RGB, RGB_FROM_HED

Tile = NDArray[np.uint8]

_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1.0) / 256.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far views may move.

    Attributes:
        min_scale: Smallest crop, as a share of the tile's area; 1 keeps the whole tile (and its µm per pixel).
        stain: Relative spread of the haematoxylin and eosin densities: gains lie in `[1/(1+s), 1+s]`.
        scanner: The same for the density of each colour channel, and for all three together.
        blur_px: Largest standard deviation of a Gaussian defocus, pixels.
    """

    min_scale: float = 0.4
    stain: float = 0.25
    scanner: float = 0.25
    blur_px: float = 0.0

    @classmethod
    def named(cls, name: Literal["none", "geometry", "weak", "strong"]) -> Self:
        """Look up a preset."""
        presets = {
            "none": cls(min_scale=1.0, stain=0.0, scanner=0.0),
            "geometry": cls(stain=0.0, scanner=0.0),
            "weak": cls(),
            "strong": cls(stain=0.35, scanner=0.6, blur_px=1.0),
        }
        return presets[name]


def view_generator(tile_id: str, seed: int) -> np.random.Generator:
    """The random stream of one view: the same on every machine and in every process."""
    digest = hashlib.sha256(f"{seed}:{tile_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def stored_view(tile: Tile, tile_id: str, seed: int, augmentation: Augmentation, *, tile_px: int) -> Tile:
    """The half of a view that teacher and student both see.

    Args:
        tile: `(H, W, 3)` uint8 RGB.
        tile_id: Identifies the tile in its source.
        seed: Number of the view; seed 0 is the plain tile, resized.
        augmentation: Ranges.
        tile_px: Side of the result.

    Returns:
        `(tile_px, tile_px, 3)` uint8.
    """
    if seed == 0:
        return _crop(tile, (0.0, 0.0, 1.0), tile_px)
    generator = view_generator(tile_id, seed)
    side = float(np.sqrt(generator.uniform(augmentation.min_scale, 1.0)))
    left, top = (float(generator.uniform(0.0, 1.0 - side)) for _ in range(2))
    turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
    view = np.rot90(_crop(tile, (left, top, side), tile_px), turns)
    if mirrored:
        view = view[:, ::-1]
    return recolour(np.ascontiguousarray(view), draw_colour(generator, augmentation))


def fresh_view(view: Tile, generator: np.random.Generator, augmentation: Augmentation) -> Tile:
    """The half that only the student sees: another recolouring and, for every second view, defocus."""
    changed = recolour(view, draw_colour(generator, augmentation))
    radius = float(generator.uniform(0.0, augmentation.blur_px)) if augmentation.blur_px else 0.0
    if radius < 0.3 or generator.integers(2):
        return changed
    blurred = Image.fromarray(changed).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.uint8)


def draw_colour(generator: np.random.Generator, augmentation: Augmentation) -> NDArray[np.float32]:
    """A random `(3, 3)` matrix on optical densities (row = density in, column = density out)."""
    stain = np.diag([_gain(generator, augmentation.stain), _gain(generator, augmentation.stain), 1.0])
    channels = np.diag([_gain(generator, augmentation.scanner * 0.6) for _ in range(3)])
    mixing = generator.normal(0.0, 0.1 * augmentation.scanner, (3, 3)) * (1.0 - np.eye(3))
    overall = _gain(generator, augmentation.scanner)
    matrix = HED_FROM_RGB @ stain @ RGB_FROM_HED @ (channels + mixing) * overall
    result: NDArray[np.float32] = matrix.astype(np.float32)
    return result


def recolour(tile: Tile, matrix: NDArray[np.float32]) -> Tile:
    """Multiply the optical densities of a tile by a `(3, 3)` matrix; white stays white."""
    if np.array_equal(matrix, np.eye(3, dtype=np.float32)):
        return tile
    density = _DENSITY[tile.reshape(-1, 3)] @ matrix
    light = np.exp(-density) * 256.0 - 0.5
    result: Tile = np.clip(light, 0.0, 255.0).astype(np.uint8).reshape(tile.shape)
    return result


def _gain(generator: np.random.Generator, spread: float) -> float:
    limit = float(np.log1p(spread))
    return float(np.exp(generator.uniform(-limit, limit)))


def _crop(tile: Tile, window: tuple[float, float, float], tile_px: int) -> Tile:
    height, width = tile.shape[:2]
    left, top, side = window
    if side == 1.0 and (height, width) == (tile_px, tile_px):
        return tile
    short = min(height, width) if height != width else height
    box = (left * width, top * height, left * width + side * short, top * height + side * short)
    image = Image.fromarray(tile).resize((tile_px, tile_px), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, dtype=np.uint8)
