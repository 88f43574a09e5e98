"""A synthetic slide: procedural tissue on glass as a pyramidal JPEG TIFF, so that no patient's slide is needed."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.cli import require_module
from atlas_edge.errors import UsageError
from atlas_edge.tiles.synthetic.source import MPP
from atlas_edge.tiles.synthetic.stain import SIMULATED_SCANNERS, SIMULATED_STAINS, render
from atlas_edge.tiles.synthetic.tissue import CLASSES, draw_tissue

TILE_PX = 256
MIN_SIDE_PX, MAX_SIDE_PX = 512, 200_000

_QUALITY = 85
_GRID_PX = 64  # spacing of the maps of tissue and class
_TEXTURE_PX = 640  # of each class, continued by mirroring
_SMALLEST_LEVEL_PX = 1024
_PEN = (38.0, 142.0, 78.0)
_PEN_HALF_WIDTH_PX = 220.0
_DUST_PX = (6.0, 40.0)
_GLASS = (243.0, 242.0, 244.0)
_EDGE_PX = 3.0  # over which tissue fades into glass

Map = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSlide:
    """What was drawn.

    Attributes:
        path: The file.
        width: Pixels of level 0, as `height`.
        height: See `width`.
        mpp: µm per pixel of level 0.
        levels: Levels of the pyramid.
        tissue_share: Tissue's share of the slide, 0-1.
        size_bytes: Of the file.
    """

    path: Path
    width: int
    height: int
    mpp: float
    levels: int
    tissue_share: float
    size_bytes: int


def make_slide(path: Path, width: int, height: int, *, seed: int = 0) -> SyntheticSlide:
    """Draw a slide: pieces of tissue of six classes on glass, with holes, dust and a stroke of pen.

    256 px JPEG tiles in a pyramid of halves at 0.5 µm per pixel, as a scanner's generic TIFF has them. The same size
    and seed give the same pixels. Rows are drawn, compressed and forgotten one after the other: memory grows with the
    width only.

    Args:
        path: TIFF to write; replaced.
        width: Pixels of level 0.
        height: See `width`.
        seed: Another seed draws another slide.

    Raises:
        UsageError: The size is out of range.
        RuntimeMissing: tifffile or imagecodecs is not installed.
    """
    if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (width, height)):
        raise UsageError(
            f"a slide of {width} x {height} px cannot be made, expected {MIN_SIDE_PX} to {MAX_SIDE_PX} px a side",
            hint="try --synthetic 20000x20000",
        )
    for module in ("tifffile", "imagecodecs"):
        require_module(module, extra="slides")
    import tifffile

    scene = _Scene(width, height, seed)
    with ExitStack() as stack:
        levels = [_Level(width, height, None)]
        while max(levels[-1].width, levels[-1].height) > _SMALLEST_LEVEL_PX:
            spool = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            levels.append(_Level(-(-levels[-1].width // 2), -(-levels[-1].height // 2), spool))
        file = stack.enter_context(tifffile.TiffWriter(path, bigtiff=width * height > 2**31))
        for number, level in enumerate(levels):
            tiles = _level_0(scene, levels) if number == 0 else level.spooled()
            _write_level(file, tiles, level, reduced=number > 0)
    return SyntheticSlide(
        path=path,
        width=width,
        height=height,
        mpp=MPP,
        levels=len(levels),
        tissue_share=scene.tissue_share,
        size_bytes=path.stat().st_size,
    )


def _write_level(file: Any, tiles: Iterator[bytes], level: "_Level", *, reduced: bool) -> None:
    per_cm = 1e4 / MPP * (level.width / level.full_width)
    file.write(
        tiles,
        shape=(level.height, level.width, 3),
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        subfiletype=int(reduced),
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        description=None if reduced else "atlas-edge synthetic slide: drawn, nobody's tissue",
        software="atlas-edge",
        metadata=None,
    )


def _level_0(scene: "_Scene", levels: list["_Level"]) -> Iterator[bytes]:
    """Compressed tiles of level 0, row by row; the coarser levels are filled on the way."""
    for level in levels:
        level.full_width = levels[0].width
    for top in range(0, scene.height, TILE_PX):
        tiles = [scene.tile(left, top) for left in range(0, scene.width, TILE_PX)]
        rows = np.concatenate(tiles, axis=1)[: scene.height - top, : scene.width]
        for level in levels[1:]:
            rows = np.asarray(Image.fromarray(rows).reduce(2))
            level.append(rows)
        if top + TILE_PX >= scene.height:
            for level in levels[1:]:
                level.finish()
        # Last: the writer asks for no more than it needs, and what came after would not run.
        yield from map(_compress, tiles)


class _Level:
    """A level that is gathered row by row: whole rows of tiles go, compressed, into a spool file."""

    def __init__(self, width: int, height: int, spool: IO[bytes] | None) -> None:
        self.width, self.height, self.full_width = width, height, width
        self._spool = spool
        self._sizes: list[int] = []
        self._rows: list[Pixels] = []
        self._waiting = 0

    def append(self, rows: Pixels) -> None:
        self._rows.append(rows)
        self._waiting += len(rows)
        if self._waiting >= TILE_PX:
            self._flush()

    def finish(self) -> None:
        if self._waiting:
            self._flush()

    def spooled(self) -> Iterator[bytes]:
        assert self._spool is not None
        self._spool.seek(0)
        for size in self._sizes:
            yield self._spool.read(size)

    def _flush(self) -> None:
        assert self._spool is not None
        waiting = np.concatenate(self._rows)
        rows = waiting[:TILE_PX]
        self._rows, self._waiting = [waiting[TILE_PX:]], len(waiting) - len(rows)
        across = -(-self.width // TILE_PX) * TILE_PX
        # What lies beyond the edge repeats it: a jump to black would ring into the last pixels.
        padded = np.pad(rows, ((0, TILE_PX - len(rows)), (0, across - self.width), (0, 0)), mode="edge")
        for left in range(0, across, TILE_PX):
            data = _compress(padded[:, left : left + TILE_PX])
            self._spool.write(data)
            self._sizes.append(len(data))


def _compress(tile: Pixels) -> bytes:
    import imagecodecs

    data = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(tile), level=_QUALITY, colorspace="rgb", outcolorspace="ycbcr", subsampling="420"
    )
    return bytes(data)


class _Scene:
    """Where tissue, which class, dust and pen lie, and how each looks."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self.width, self.height = width, height
        rng = np.random.default_rng([20, seed])
        # Two spare columns and rows: a tile's maps reach one node past it.
        shape = (-(-height // TILE_PX) * (TILE_PX // _GRID_PX) + 2, -(-width // TILE_PX) * (TILE_PX // _GRID_PX) + 2)
        self._tissue = _tissue_map(shape, rng)
        self._classes = np.stack([_noise(shape, 24, rng) for _ in CLASSES])
        self._dust = rng.uniform(
            (0, 0, _DUST_PX[0]), (width, height, _DUST_PX[1]), (max(width * height // 10**7, 4), 3)
        )
        self._stroke = np.array([[0.06, 0.90], [0.30, 0.97]]) * (width, height)
        self._glass = _mirrored(_glass_texture(rng))
        self._textures = [_mirrored(_tissue_texture(label, rng)) for label in CLASSES]
        nodes = np.arange(TILE_PX // _GRID_PX + 1)
        at = (np.arange(TILE_PX) + 0.5) / _GRID_PX
        self._weights = np.maximum(1 - np.abs(at[:, None] - nodes), 0).astype(np.float32)
        self._y, self._x = np.mgrid[:TILE_PX, :TILE_PX].astype(np.float32)
        inside = self._tissue[: height // _GRID_PX + 1, : width // _GRID_PX + 1]
        self.tissue_share = float((inside > 0).mean())

    def tile(self, left: int, top: int) -> Pixels:
        """`(256, 256, 3)` uint8 RGB."""
        step = TILE_PX // _GRID_PX
        window = np.s_[top // _GRID_PX : top // _GRID_PX + step + 1, left // _GRID_PX : left // _GRID_PX + step + 1]
        tissue = self._tissue[window]
        if tissue.max() <= 0:
            pixels = _window(self._glass, left, top)
        else:
            pixels = self._tissue_pixels(left, top, self._classes[:, window[0], window[1]])
            if tissue.min() * _GRID_PX < _EDGE_PX:
                cover = np.clip(self._enlarge(tissue) * (_GRID_PX / _EDGE_PX), 0, 1)[..., None]
                glass = _window(self._glass, left, top)
                pixels = (glass + (pixels.astype(np.float32) - glass) * cover).astype(np.uint8)
        return self._soiled(pixels, left, top)

    def _tissue_pixels(self, left: int, top: int, classes: Map) -> Pixels:
        nearest = classes.argmax(axis=0)
        if (nearest == nearest[0, 0]).all():
            return _window(self._textures[nearest[0, 0]], left, top)
        chosen = np.stack([self._enlarge(field) for field in classes]).argmax(axis=0)
        pixels = np.empty((TILE_PX, TILE_PX, 3), dtype=np.uint8)
        for index in np.flatnonzero(np.bincount(chosen.ravel())):
            where = chosen == index
            pixels[where] = _window(self._textures[index], left, top)[where]
        return pixels

    def _enlarge(self, field: Map) -> Map:
        return np.asarray(self._weights @ field @ self._weights.T, dtype=np.float32)

    def _soiled(self, pixels: Pixels, left: int, top: int) -> Pixels:
        low, high = self._stroke.min(axis=0) - _PEN_HALF_WIDTH_PX, self._stroke.max(axis=0) + _PEN_HALF_WIDTH_PX
        corner = np.array([left, top])
        if (corner + TILE_PX > low).all() and (corner < high).all():
            pixels = self._inked(pixels, left, top)
        near = np.abs(self._dust[:, :2] - corner - TILE_PX / 2).max(axis=1) < TILE_PX / 2 + _DUST_PX[1]
        for x, y, radius in self._dust[near]:
            distance = np.hypot(self._x + (left - x), (self._y + (top - y)) * 1.3)
            shade = 1 - 0.75 * np.clip((radius - distance) / 3, 0, 1)[..., None]
            pixels = (pixels * shade).astype(np.uint8)
        return pixels

    def _inked(self, pixels: Pixels, left: int, top: int) -> Pixels:
        start, along = self._stroke[0], self._stroke[1] - self._stroke[0]
        x, y = self._x + (left - start[0]), self._y + (top - start[1])
        share = np.clip((x * along[0] + y * along[1]) / (along @ along), 0, 1)
        distance = np.hypot(x - share * along[0], y - share * along[1])
        ink = np.clip((_PEN_HALF_WIDTH_PX - distance) / 12, 0, 1)[..., None]
        return np.asarray(pixels * (1 - ink * (1 - np.array(_PEN) / 255)), dtype=np.uint8)


def _tissue_map(shape: tuple[int, int], rng: np.random.Generator) -> Map:
    """Above 0 in tissue; about the distance to its edge in nodes."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pieces = np.full(shape, -np.inf, dtype=np.float32)
    for centre_x, centre_y, radius_x, radius_y in (
        (0.33, 0.46, 0.27, 0.37),
        (0.77, 0.36, 0.17, 0.28),
        (0.72, 0.81, 0.20, 0.12),
    ):
        jitter = rng.uniform(-0.015, 0.015, 2)
        reach = np.hypot((x / width - centre_x - jitter[0]) / radius_x, (y / height - centre_y - jitter[1]) / radius_y)
        np.maximum(pieces, (1 - reach) * min(radius_x * width, radius_y * height), out=pieces)
    size = min(height, width)
    outline = _noise(shape, max(size // 8, 6), rng) * (0.018 * size) + _noise(shape, 10, rng) * 1.5
    holes = (_noise(shape, 14, rng) - 2.1) * 8
    tissue: Map = np.minimum(pieces + outline, -holes).astype(np.float32)
    return tissue


def _noise(shape: tuple[int, int], scale: int, rng: np.random.Generator) -> Map:
    """Smooth noise of about unit variance that changes over `scale` nodes."""
    small = rng.standard_normal((shape[0] // scale + 4, shape[1] // scale + 4), dtype=np.float32)
    box = (1.0, 1.0, 1.0 + shape[1] / scale, 1.0 + shape[0] / scale)
    smooth = Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth, dtype=np.float32) * np.float32(1.35)


def _tissue_texture(label: str, rng: np.random.Generator) -> Pixels:
    haematoxylin, eosin, noise = draw_tissue(label, _TEXTURE_PX, rng)
    return render(haematoxylin, eosin, stain=SIMULATED_STAINS[1], scanner=SIMULATED_SCANNERS[0], noise=noise)


def _glass_texture(rng: np.random.Generator) -> Pixels:
    noise = rng.normal(0, 1.2, (_TEXTURE_PX, _TEXTURE_PX, 3))
    return np.clip(np.array(_GLASS) + noise, 0, 255).astype(np.uint8)


def _mirrored(texture: Pixels) -> Pixels:
    """Continued without a seam, and by a tile more than its period, so that every window is a slice."""
    return np.pad(texture, ((0, _TEXTURE_PX + TILE_PX), (0, _TEXTURE_PX + TILE_PX), (0, 0)), mode="symmetric")


def _window(texture: Pixels, left: int, top: int) -> Pixels:
    x, y = left % (2 * _TEXTURE_PX), top % (2 * _TEXTURE_PX)
    return texture[y : y + TILE_PX, x : x + TILE_PX]
