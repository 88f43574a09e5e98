"""Procedural tissue: maps of haematoxylin and eosin for six tissue classes at 0.5 µm per pixel."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from atlas_edge.tiles.synthetic.nuclei import DIRECTIONS, STAMP_PX, nucleus_stamps

Map = NDArray[np.float32]

MARGIN_PX = 18  # drawn around the tile, so that nuclei may straddle its edge

_NOISE_PX = 1024


class Canvas:
    """Concentration maps being drawn: `haematoxylin` and `eosin`, `(side, side)` float32."""

    def __init__(self, tile_px: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.side = tile_px + 2 * MARGIN_PX
        self.haematoxylin: Map = np.zeros((self.side, self.side), dtype=np.float32)
        self.eosin: Map = np.zeros((self.side, self.side), dtype=np.float32)
        grid = np.arange(self.side, dtype=np.float32)
        self.x, self.y = grid[None, :], grid[:, None]

    def noise(self, scale: str) -> Map:
        """A random window of a noise field of unit variance, turned at random."""
        top, left, turn = self.rng.integers(0, _NOISE_PX, 3)
        window = _noise_fields(self.side)[scale][top : top + self.side, left : left + self.side]
        return np.rot90(window, turn % 4)

    def points(self, spacing_px: float, *, jitter: float = 0.4) -> NDArray[np.float32]:
        """`(N, 2)` float32 x, y on a jittered hexagonal grid over the canvas."""
        x, y = np.meshgrid(
            np.arange(0.0, self.side + spacing_px, spacing_px),
            np.arange(0.0, self.side + spacing_px, spacing_px * 0.87),
        )
        x[1::2] += spacing_px / 2
        grid = np.stack([x.ravel(), y.ravel()], axis=1) + self.rng.uniform(-1, 1, (x.size, 2)) * jitter * spacing_px
        return (grid + self.rng.uniform(0, spacing_px, 2) - spacing_px / 2).astype(np.float32)

    def nuclei(
        self,
        kind: str,
        points: NDArray[np.float32],
        angles: NDArray[np.float32] | None = None,
        *,
        density: float = 1.0,
        where: NDArray[np.bool_] | None = None,
    ) -> None:
        """Stamp nuclei of a kind, at `angles` in radians (random when None), where the mask is true."""
        stamps, half = nucleus_stamps(kind), STAMP_PX // 2
        corners = np.rint(points).astype(np.intp) - half
        inside = ((corners >= 0) & (corners <= self.side - STAMP_PX)).all(axis=1)
        if where is not None:
            centres = np.clip(corners + half, 0, self.side - 1)
            inside &= where[centres[:, 1], centres[:, 0]]
        turned = self.rng.uniform(0, np.pi, len(points)) if angles is None else angles
        directions = np.rint(turned * DIRECTIONS / np.pi).astype(np.intp) % DIRECTIONS
        variants = self.rng.integers(0, stamps.cover.shape[1], len(points))
        factors = (density * self.rng.normal(1, 0.12, len(points))).clip(0.5, 1.6).astype(np.float32)
        for index in np.flatnonzero(inside):
            left, top = corners[index]
            cover = stamps.cover[directions[index], variants[index]]
            window = np.s_[top : top + STAMP_PX, left : left + STAMP_PX]
            clear = 1 - cover
            self.haematoxylin[window] *= clear
            self.haematoxylin[window] += stamps.amount[directions[index], variants[index]] * factors[index]
            self.eosin[window] *= 0.35 + 0.65 * clear

    def fibres(self, *, strength: float) -> tuple[Map, float]:
        """A wavy collagen texture around 0, and its direction in radians."""
        angle = self.rng.uniform(0, np.pi)
        bend = self.noise("coarse") * 9
        across = self.y * np.float32(np.cos(angle)) - self.x * np.float32(np.sin(angle)) + bend
        wave = np.sin(across * np.float32(2 * np.pi / self.rng.uniform(9, 16)))
        wave += np.sin(across * np.float32(2 * np.pi / self.rng.uniform(4, 7)) + self.noise("medium"))
        return wave * np.float32(strength) + self.noise("fine") * np.float32(strength * 0.5), float(angle)


def draw_tissue(label: str, tile_px: int, rng: np.random.Generator) -> tuple[Map, Map, Map]:
    """Draw one tile of a class.

    Args:
        label: One of `CLASSES`.
        tile_px: Side of the tile.
        rng: Everything random comes from it.

    Returns:
        Haematoxylin, eosin, and white noise of unit variance for the sensor, `(tile_px, tile_px)` float32 each.
    """
    canvas = Canvas(tile_px, rng)
    CLASSES[label](canvas)
    crop = np.s_[MARGIN_PX : MARGIN_PX + tile_px, MARGIN_PX : MARGIN_PX + tile_px]
    return np.maximum(canvas.haematoxylin[crop], 0), np.maximum(canvas.eosin[crop], 0), canvas.noise("grain")[crop]


def _stroma(canvas: Canvas) -> None:
    density = canvas.rng.uniform(0.75, 1.25)
    texture, angle = canvas.fibres(strength=0.13)
    _fill_stroma(canvas, texture)
    gaps = canvas.noise("medium") - 0.6 * canvas.noise("coarse") > canvas.rng.uniform(1.1, 1.9)
    canvas.eosin[gaps] *= 0.25
    points = canvas.points(34 / density)
    keep = canvas.rng.random(len(points)) < 0.75
    angles = (angle + canvas.rng.normal(0, 0.2, len(points))).astype(np.float32)
    canvas.nuclei("fibroblast", points[keep], angles[keep])
    canvas.nuclei("lymphocyte", canvas.points(70))
    _vessels(canvas, int(canvas.rng.integers(0, 3)))


def _lymphoid(canvas: Canvas) -> None:
    canvas.eosin += 0.22 + 0.06 * canvas.noise("medium")
    canvas.haematoxylin += 0.16 + 0.04 * canvas.noise("medium")
    points = canvas.points(canvas.rng.uniform(13, 15.5), jitter=0.3)
    # Paler follicle centres hold larger cells.
    follicle = canvas.noise("coarse") > canvas.rng.uniform(0.5, 2.0)
    canvas.nuclei("lymphocyte", points, where=~follicle)
    canvas.nuclei("tumour", canvas.points(19), density=0.6, where=follicle)


def _adipose(canvas: Canvas) -> None:
    seeds = canvas.points(canvas.rng.uniform(85, 125), jitter=0.25)
    wall = _distance_to_wall(canvas, seeds) + 1.5 * canvas.noise("medium")
    membrane = np.clip((canvas.rng.uniform(4, 6) - wall) / 3, 0, 1)
    canvas.eosin += membrane * (0.5 + 0.08 * canvas.noise("fine")) + 0.015
    canvas.haematoxylin += membrane * 0.08
    angles = canvas.rng.uniform(0, np.pi, 4000).astype(np.float32)
    points = canvas.points(30)
    canvas.nuclei("fibroblast", points, angles[: len(points)], where=(wall < 3.5) & (canvas.noise("coarse") > 0.4))
    if canvas.rng.random() < 0.5:
        _band_of_stroma(canvas)


def _mucin(canvas: Canvas) -> None:
    strands, _ = canvas.fibres(strength=0.05)
    canvas.haematoxylin += np.clip(0.17 + strands + 0.04 * canvas.noise("medium"), 0.03, None)
    canvas.eosin += 0.07 + 0.02 * canvas.noise("medium")
    canvas.nuclei("lymphocyte", canvas.points(75))
    clusters = canvas.noise("coarse") > canvas.rng.uniform(1.2, 2.0)
    canvas.eosin[clusters] += 0.35
    canvas.nuclei("tumour", canvas.points(18), where=clusters)
    if canvas.rng.random() < 0.6:
        _band_of_stroma(canvas)


def _normal_gland(canvas: Canvas) -> None:
    texture, _ = canvas.fibres(strength=0.08)
    _fill_stroma(canvas, texture - 0.08)
    _lamina_propria_cells(canvas)
    spacing = canvas.rng.uniform(112, 140)
    for x, y in canvas.points(spacing, jitter=0.10):
        _crypt(canvas, float(x), float(y), spacing * canvas.rng.uniform(0.40, 0.45))


def _tumour(canvas: Canvas) -> None:
    texture, angle = canvas.fibres(strength=0.10)
    _fill_stroma(canvas, texture)
    points = canvas.points(42)
    canvas.nuclei("fibroblast", points, np.full(len(points), angle, dtype=np.float32))
    field = canvas.noise("coarse") + 0.25 * canvas.noise("medium")
    nests = field > canvas.rng.uniform(-1.6, -0.6)
    sheet = 0.42 + 0.07 * canvas.noise("medium") + 0.03 * canvas.noise("fine")
    canvas.eosin[nests] = sheet[nests]
    canvas.haematoxylin[nests] = (0.30 + 0.05 * canvas.noise("medium"))[nests]
    canvas.nuclei(
        "tumour", canvas.points(canvas.rng.uniform(17, 21)), density=canvas.rng.uniform(0.85, 1.2), where=nests
    )
    lumens = canvas.noise("coarse") - 0.2 * canvas.noise("medium") > canvas.rng.uniform(1.3, 2.2)
    canvas.haematoxylin[lumens] *= 0.1
    # Dirty necrosis in some of them.
    canvas.eosin[lumens] = (np.clip(canvas.noise("fine"), 0, 1) * canvas.rng.choice([0.05, 0.6]))[lumens]


CLASSES: dict[str, Callable[[Canvas], None]] = {
    "normal-gland": _normal_gland,
    "tumour": _tumour,
    "stroma": _stroma,
    "lymphoid": _lymphoid,
    "mucin": _mucin,
    "adipose": _adipose,
}


def _fill_stroma(canvas: Canvas, texture: Map) -> None:
    canvas.eosin += np.clip(0.48 + texture + 0.06 * canvas.noise("medium"), 0.05, None)
    canvas.haematoxylin += np.clip(0.10 + 0.25 * texture, 0, None)


def _distance_to_wall(canvas: Canvas, seeds: NDArray[np.float32]) -> Map:
    """Second nearest seed's distance less the nearest's: 0 on the edges of a Voronoi diagram."""
    nearest = np.full((canvas.side, canvas.side), np.inf, dtype=np.float32)
    second = nearest.copy()
    for x, y in seeds:
        squared = (canvas.x - x) ** 2 + (canvas.y - y) ** 2
        np.minimum(second, np.maximum(nearest, squared), out=second)
        np.minimum(nearest, squared, out=nearest)
    return np.sqrt(second) - np.sqrt(nearest)


def _vessels(canvas: Canvas, count: int) -> None:
    for x, y in canvas.rng.uniform(0, canvas.side, (count, 2)):
        stretch, turn = canvas.rng.uniform(0.5, 1), canvas.rng.uniform(0, np.pi)
        dx, dy = canvas.x - np.float32(x), canvas.y - np.float32(y)
        u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / stretch
        radius = np.hypot(u, v) / np.float32(canvas.rng.uniform(14, 26)) + 0.06 * canvas.noise("medium")
        lumen = radius < 1
        blood = np.clip(canvas.noise("fine"), 0, 1.2) * 0.7
        canvas.eosin[lumen], canvas.haematoxylin[lumen] = blood[lumen], 0
        ring = (radius > 1) & (radius < 1.22)
        canvas.nuclei("fibroblast", canvas.points(13), where=ring)


def _lamina_propria_cells(canvas: Canvas) -> None:
    points = canvas.points(20)
    lymphocyte = canvas.rng.random(len(points)) < canvas.rng.uniform(0.4, 0.7)
    canvas.nuclei("lymphocyte", points[lymphocyte])
    canvas.nuclei("fibroblast", points[~lymphocyte])


def _band_of_stroma(canvas: Canvas) -> None:
    angle = canvas.rng.uniform(0, np.pi)
    offset = canvas.rng.uniform(0.25, 0.75) * canvas.side
    across = (canvas.x - canvas.side / 2) * np.cos(angle) + (canvas.y - canvas.side / 2) * np.sin(angle)
    band = np.abs(across + canvas.side / 2 - offset + 10 * canvas.noise("coarse")) < canvas.rng.uniform(10, 30)
    texture, _ = canvas.fibres(strength=0.12)
    canvas.eosin[band] = np.clip(0.5 + texture, 0.1, None)[band]
    canvas.haematoxylin[band] = 0.1
    points = canvas.points(26)
    canvas.nuclei("fibroblast", points, np.full(len(points), angle + np.pi / 2, dtype=np.float32), where=band)


def _crypt(canvas: Canvas, x: float, y: float, radius_px: float) -> None:
    """A colonic crypt in cross-section: basal nuclei around goblet cells around a lumen."""
    rng = canvas.rng
    reach = int(radius_px * 1.3) + 2
    left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
    window = np.s_[top : int(y) + reach, left : int(x) + reach]
    dx, dy = canvas.x[:, window[1]] - np.float32(x), canvas.y[window[0]] - np.float32(y)
    if dx.size == 0 or dy.size == 0:
        return
    theta = np.arctan2(dy, dx)
    phases, lobes = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.03, 0.10, 2)

    def outline(angle: Map) -> Map:
        wobble = lobes[0] * np.cos(2 * angle + phases[0]) + lobes[1] * np.cos(3 * angle + phases[1])
        return np.asarray((1 + wobble) * radius_px, dtype=np.float32)

    depth = np.hypot(dx, dy) / outline(theta)
    inside, lumen = depth < 1, depth < rng.uniform(0.14, 0.26)
    grain = canvas.noise("medium")[: depth.shape[0], : depth.shape[1]]
    eosin, haematoxylin = canvas.eosin[window], canvas.haematoxylin[window]
    eosin[inside] = (0.36 + 0.10 * depth + 0.05 * grain)[inside]
    haematoxylin[inside] = (0.14 + 0.03 * grain)[inside]
    _goblets(eosin, haematoxylin, depth, theta, rng)
    eosin[lumen], haematoxylin[lumen] = 0.05, 0.04
    rim = (depth > 1) & (depth < 1 + 2.2 / radius_px)
    eosin[rim] += 0.25
    around = np.arange(0, 2 * np.pi, rng.uniform(8.5, 11) / radius_px)
    angles: Map = np.asarray(around + rng.normal(0, 0.05, around.size), dtype=np.float32)
    where = outline(angles) * rng.uniform(0.78, 0.88, angles.size)
    ring = np.stack([x + where * np.cos(angles), y + where * np.sin(angles)], axis=1).astype(np.float32)
    canvas.nuclei("epithelial", ring, angles)


def _goblets(eosin: Map, haematoxylin: Map, depth: Map, theta: Map, rng: np.random.Generator) -> None:
    cells = int(rng.integers(9, 16))
    phase = (theta * np.float32(cells / (2 * np.pi)) + rng.uniform()) % 1
    droplet = ((phase - 0.5) / 0.36) ** 2 + ((depth - rng.uniform(0.46, 0.54)) / 0.22) ** 2 < 1
    eosin[droplet] *= 0.25
    haematoxylin[droplet] = 0.13


@cache
def _noise_fields(side: int) -> dict[str, Map]:
    """Periodic fields of unit variance, continued by `side` pixels so that every window is a slice."""
    rng = np.random.default_rng(1973)
    frequency = np.hypot(np.fft.fftfreq(_NOISE_PX)[:, None], np.fft.rfftfreq(_NOISE_PX)[None, :])
    white = np.fft.rfft2(rng.normal(size=(_NOISE_PX, _NOISE_PX)))
    fields = {}
    for name, cutoff_px in (("coarse", 60.0), ("medium", 12.0), ("fine", 3.0)):
        turned = white * np.exp(1j * rng.uniform(0, 2 * np.pi, white.shape))
        field = np.fft.irfft2(turned * np.exp(-((frequency * cutoff_px) ** 2) * 2), s=(_NOISE_PX, _NOISE_PX))
        field -= field.mean()
        fields[name] = np.pad((field / field.std()).astype(np.float32), (0, side), mode="wrap")
    fields["grain"] = np.pad(rng.standard_normal((_NOISE_PX, _NOISE_PX), dtype=np.float32), (0, side), mode="wrap")
    return fields
