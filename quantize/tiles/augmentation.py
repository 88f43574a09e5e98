"""Copies of calibration tiles that show what slides have and tile sets lack: glass beyond an edge, and brown stain.

Tile sets are cut from the middle of H&E tissue. On a slide, tiles with an edge of tissue on bare glass and nuclei
stained with DAB drive inputs of the first blocks to ten times the range that such sets show, and a range that was set
without them clips there (docs/notes/2026-11-28-quantization.md has the figures).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.tiles.shifts import mix_stains, stain_densities

Tiles = NDArray[np.uint8]

_NOISE = 0.7


def with_augmented(calibration: Sequence[Tiles], share: float, *, seed: int = 0) -> list[Tiles]:
    """Put augmented copies among calibration tiles, so that every beginning holds its share of them.

    Copies show, by turns, glass, DAB, and both.

    Args:
        calibration: Batches `(B, H, W, 3)` uint8.
        share: Of all tiles that come back, 0 to less than 1.
        seed: Another seed draws other copies.

    Returns:
        Batches of the first one's size; the last may be smaller.
    """
    if share <= 0 or not any(map(len, calibration)):
        return list(calibration)
    tiles: list[Tiles] = []
    copies = 0
    for index, tile in enumerate(np.concatenate(list(calibration))):
        tiles.append(tile)
        while copies < round(share / (1 - share) * (index + 1)):
            tiles.append(_copy(tile, copies, np.random.default_rng((seed, index, copies))))
            copies += 1
    size = len(calibration[0])
    return [np.stack(tiles[start : start + size]) for start in range(0, len(tiles), size)]


def add_glass(tile: Tiles, rng: np.random.Generator) -> Tiles:
    """Cover 50 to 90 % of a tile, `(H, W, 3)` uint8, with bare glass, up to a wavy edge a few pixels wide."""
    side = tile.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    down, right = np.mgrid[:side, : tile.shape[1]] / side - 0.5
    distance = right * np.cos(angle) + down * np.sin(angle) + 0.25 * (_field(rng, tile.shape, 5) - 0.5)
    edge = np.quantile(distance, rng.uniform(0.1, 0.5))
    cover = np.clip((distance - edge) * side / 2, 0, 1)[..., None]
    white = rng.uniform(205, 250) + rng.uniform(-5, 5, 3)
    glass = white + rng.normal(0, _NOISE, tile.shape)
    light = tile * (1 - cover) + glass * cover
    return np.asarray(np.clip(np.rint(light), 0, 255), dtype=np.uint8)


def add_dab(tile: Tiles, rng: np.random.Generator) -> Tiles:
    """Restain a tile, `(H, W, 3)` uint8, as immunohistochemistry: pale blue, with patches whose nuclei are brown."""
    stains = np.maximum(stain_densities(tile), 0)
    haematoxylin, eosin = stains[..., 0], stains[..., 1]
    positive = np.clip((_field(rng, tile.shape, 7) - 0.6) * 12, 0, 1)
    blue = haematoxylin * rng.uniform(0.4, 0.8) * (1 - positive)
    pink = eosin * rng.uniform(0.05, 0.25)
    brown = haematoxylin * rng.uniform(1, 2.2) * positive + 0.02
    return mix_stains(np.stack([blue, pink, brown], axis=-1))


def _copy(tile: Tiles, number: int, rng: np.random.Generator) -> Tiles:
    kind = number % 3
    if kind:
        tile = add_dab(tile, rng)
    return tile if kind == 1 else add_glass(tile, rng)


def _field(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> NDArray[np.float32]:
    """Smooth noise in about 0 to 1, `(H, W)`, with so many bumps a side."""
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
