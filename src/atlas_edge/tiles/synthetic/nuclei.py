"""A bank of drawn nuclei: small maps of haematoxylin, by kind and direction."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

STAMP_PX = 33
DIRECTIONS = 16

_VARIANTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NucleusKind:
    """Size, shape and chromatin of one kind of nucleus at 0.5 µm per pixel.

    Attributes:
        length_px: Long half axis.
        width_px: Short half axis.
        spread: Relative spread of the size.
        ruffle: Irregularity of the outline.
        density: Mean haematoxylin concentration.
        rim: How much darker the membrane is than the middle: vesicular nuclei have much.
        clump: Strength of chromatin clumps.
        nucleoli: Most nucleoli that one may have.
    """

    length_px: float
    width_px: float
    spread: float
    ruffle: float
    density: float
    rim: float
    clump: float
    nucleoli: int = 0


KINDS = {
    "lymphocyte": NucleusKind(length_px=6.2, width_px=5.8, spread=0.08, ruffle=0.04, density=1.75, rim=0.1, clump=0.30),
    "epithelial": NucleusKind(length_px=9.0, width_px=5.2, spread=0.10, ruffle=0.04, density=1.25, rim=0.3, clump=0.18),
    "fibroblast": NucleusKind(
        length_px=11.5, width_px=2.8, spread=0.20, ruffle=0.08, density=1.35, rim=0.1, clump=0.15
    ),
    "tumour": NucleusKind(
        length_px=10.0, width_px=7.8, spread=0.24, ruffle=0.16, density=1.3, rim=0.45, clump=0.22, nucleoli=2
    ),
}


@dataclass(frozen=True, slots=True)
class Stamps:
    """`cover` and `amount`, `(DIRECTIONS, variants, STAMP_PX, STAMP_PX)` float32: opacity and haematoxylin."""

    cover: NDArray[np.float32]
    amount: NDArray[np.float32]


@cache
def nucleus_stamps(kind: str) -> Stamps:
    """The stamps of a kind; the same in every process."""
    rng = np.random.default_rng([71, sorted(KINDS).index(kind)])
    shape = (DIRECTIONS, _VARIANTS, STAMP_PX, STAMP_PX)
    cover, amount = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for direction in range(DIRECTIONS):
        for variant in range(_VARIANTS):
            drawn = _draw(KINDS[kind], np.pi * direction / DIRECTIONS, rng)
            cover[direction, variant], amount[direction, variant] = drawn
    return Stamps(cover, amount)


def _draw(kind: NucleusKind, angle: float, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    half = STAMP_PX // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    size = np.clip(rng.normal(1, kind.spread), 0.6, 1.5)
    length, width = min(kind.length_px * size, half - 1), min(kind.width_px * size, half - 1)
    theta = np.arctan2(across / width, along / length)
    outline = 1 + sum(kind.ruffle / lobe * np.cos(lobe * theta + rng.uniform(0, 2 * np.pi)) for lobe in (2, 3, 5))
    radius = np.hypot(along / length, across / width) / outline
    cover = np.clip((1 - radius) * min(length, width) / 1.6 + 0.5, 0, 1)
    amount = 1 + kind.rim * (np.clip(radius, 0, 1) ** 3 - 0.5) + kind.clump * _clumps(rng)
    for _ in range(rng.integers(0, kind.nucleoli + 1)):
        cx, cy = rng.uniform(-0.4, 0.4, 2) * width
        amount += 0.7 * np.exp(-((along - cx) ** 2 + (across - cy) ** 2) / 3.5)
    return cover.astype(np.float32), (cover * np.clip(amount, 0.2, 2.2) * kind.density).astype(np.float32)


def _clumps(rng: np.random.Generator) -> NDArray[np.float64]:
    noise = rng.normal(size=(STAMP_PX + 4, STAMP_PX + 4))
    smooth = sum(noise[i : i + STAMP_PX, j : j + STAMP_PX] for i in range(4) for j in range(4)) / 4
    return np.asarray(smooth)
