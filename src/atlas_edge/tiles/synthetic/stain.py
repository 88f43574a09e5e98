"""From stain concentrations to pixels: Beer-Lambert, simulated stains and simulated scanners."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stain:
    """Optical density of haematoxylin and eosin in R, G, B (each of unit length) and their strengths."""

    name: str
    haematoxylin: Vector
    eosin: Vector
    haematoxylin_strength: float = 1.0
    eosin_strength: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """How a simulated scanner renders transmitted light.

    Attributes:
        white: R, G, B of empty glass, 0-1.
        gamma: Exponent on transmitted light; above 1 gives more contrast.
        saturation: 1 leaves colours alone.
        blur: Share of a pixel's light that goes to each neighbour in a row; below 0 sharpens.
        noise: Standard deviation of sensor noise, grey levels.
    """

    name: str
    white: Vector
    gamma: float
    saturation: float
    blur: float
    noise: float


# Vectors around the published ones: Ruifrok and Johnston, Anal Quant Cytol Histol 2001 (first); Macenko et al.,
# ISBI 2009 (second); ImageJ's Colour Deconvolution "H&E 2" (third). The first pair's eosin is moved towards the
# others: alone it is more magenta than H&E looks.
SIMULATED_STAINS = (
    Stain(name="simulated-ruifrok", haematoxylin=(0.650, 0.704, 0.286), eosin=(0.107, 0.938, 0.330)),
    Stain(
        name="simulated-macenko",
        haematoxylin=(0.563, 0.720, 0.406),
        eosin=(0.216, 0.801, 0.558),
        haematoxylin_strength=0.9,
        eosin_strength=1.1,
    ),
    Stain(
        name="simulated-pale",
        haematoxylin=(0.490, 0.769, 0.410),
        eosin=(0.060, 0.870, 0.489),
        haematoxylin_strength=0.8,
        eosin_strength=0.75,
    ),
)

SIMULATED_SCANNERS = (
    Scanner(name="simulated-A", white=(0.96, 0.95, 0.96), gamma=1.0, saturation=1.0, blur=0.10, noise=2.0),
    Scanner(name="simulated-B", white=(0.93, 0.92, 0.95), gamma=1.12, saturation=0.9, blur=0.18, noise=4.0),
    Scanner(name="simulated-C", white=(0.98, 0.97, 0.94), gamma=0.9, saturation=1.15, blur=-0.06, noise=1.5),
    Scanner(name="simulated-D", white=(0.90, 0.92, 0.92), gamma=1.05, saturation=1.0, blur=0.24, noise=6.0),
)


def render(
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    *,
    stain: Stain,
    scanner: Scanner,
    noise: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Light through a stained section, as a scanner would store it.

    Beer-Lambert: `I = white * exp(-(cH vH + cE vE)) ** gamma`, per channel (Ruifrok and Johnston 2001, with the
    natural logarithm).

    Args:
        haematoxylin: `(H, W)` float32 concentration, 0 for none, about 1.5 in a nucleus.
        eosin: `(H, W)` float32 concentration, about 0.6 in stroma.
        stain: The stain's vectors.
        scanner: The scanner's rendering.
        noise: `(H, W)` float32 of unit variance.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    strength_h, strength_e = stain.haematoxylin_strength * scanner.gamma, stain.eosin_strength * scanner.gamma
    light = np.empty((3, *haematoxylin.shape), dtype=np.float32)
    for channel in range(3):
        density = haematoxylin * np.float32(-stain.haematoxylin[channel] * strength_h)
        density += eosin * np.float32(-stain.eosin[channel] * strength_e)
        np.exp(density, out=light[channel])
        light[channel] *= np.float32(255 * scanner.white[channel])
    if scanner.saturation != 1:
        grey = light.mean(axis=0) * np.float32(1 - scanner.saturation)
        light *= np.float32(scanner.saturation)
        light += grey
    light += noise * np.float32(scanner.noise) + np.float32(0.5)
    np.clip(light, 0, 255, out=light)
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in light.astype(np.uint8)])
    return np.array(image.filter(_optics(scanner.blur)), dtype=np.uint8)


def _optics(blur: float) -> ImageFilter.Kernel:
    row = np.array([blur, 1 - 2 * blur, blur])
    return ImageFilter.Kernel((3, 3), [float(weight) for weight in np.outer(row, row).ravel()], scale=1)
