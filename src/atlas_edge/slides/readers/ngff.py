"""OME-Zarr, versions 0.4 and 0.5: a folder of chunks that says its scale and levels in JSON."""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.slides.readers.foreign import foreign_errors, one_line
from atlas_edge.slides.readers.tiff_chain import LARGEST_TILE_BYTES
from atlas_edge.slides.slide import Level, Slide, is_same_shape
from atlas_edge.system.paths import stays_inside

SUFFIX = ".zarr"

_UM = {
    "meter": 1e6, "decimeter": 1e5, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3,
    "angstrom": 1e-4, "picometer": 1e-6, "inch": 25_400.0,
}  # fmt: skip
_MOST_IMAGES = 64


def is_ngff(folder: Path) -> bool:
    """Whether a folder is an image in OME-Zarr, or holds such images as bioformats2raw writes them."""
    return folder.suffix.lower() == SUFFIX and folder.is_dir() and bool(_images(folder))


class NgffSlide(Slide):
    """The largest image of an OME-Zarr, 8-bit RGB in three channels, with its levels.

    Args:
        path: Its folder.
        cache_bytes: Decoded chunks to keep.

    Raises:
        InputError: Damaged, or not 8-bit RGB.
        RuntimeMissing: zarr is not installed.
    """

    def __init__(self, path: Path, *, cache_bytes: int) -> None:
        require_module("zarr", extra="zarr")
        self.path = path
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._cache_bytes, self._cached_bytes = cache_bytes, 0
        with foreign_errors(f"{path} is no whole OME-Zarr"):
            self._describe()

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see `Slide.read`."""
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        size, (tall, wide) = self.levels[level], self._chunks[level]
        right, bottom = min(left + width, size.width), min(top + height, size.height)
        for row in range(max(top, 0) // tall, -(-bottom // tall)):
            for column in range(max(left, 0) // wide, -(-right // wide)):
                chunk = self._chunk(level, row, column)
                y, x = row * tall, column * wide
                y0, x0 = max(y, top, 0), max(x, left, 0)
                y1, x1 = min(y + chunk.shape[0], bottom), min(x + chunk.shape[1], right)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = chunk[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    def close(self) -> None:
        """Forget what was read."""
        self._cache.clear()

    def _describe(self) -> None:
        import zarr

        found = []
        for folder, image in _images(self.path):
            paths = [str(dataset["path"]) for dataset in image["datasets"]]
            if not paths or not all(map(stays_inside, paths)):
                raise InputError(f"{self.path} says that its levels are {paths}", hint="copy the slide again")
            arrays = [zarr.open_array(folder / path, mode="r") for path in paths]
            axes = [str(axis["name"]).lower() for axis in image["axes"]]
            found.append((_pixels(arrays[0], axes), arrays, axes, image))
        _, arrays, self._axes, image = max(found, key=lambda item: item[0])
        full = arrays[0]
        if full.dtype != np.uint8 or len(full.shape) != len(self._axes) or self._length(full, "c") != 3:
            raise InputError(
                f"{self.path} holds {full.dtype} {''.join(self._axes)} {full.shape}, expected 8-bit RGB in 3 channels",
                hint="export the slide as RGB",
            )
        size = (self._length(full, "x"), self._length(full, "y"))
        self._arrays = [array for array in arrays if self._is_level(array, size)]
        self.vendor = "ome-zarr"
        self._chunks = [(array.chunks[self._place("y")], array.chunks[self._place("x")]) for array in self._arrays]
        self.levels = tuple(
            Level(width=width, height=height, downsample_x=size[0] / width, downsample_y=size[1] / height)
            for width, height in ((self._length(array, "x"), self._length(array, "y")) for array in self._arrays)
        )
        self.stated_mpp = (_mpp(image, self._place("x")), _mpp(image, self._place("y")))

    def _is_level(self, array: Any, full: tuple[int, int]) -> bool:
        size = (self._length(array, "x"), self._length(array, "y"))
        chunk_bytes = int(np.prod(array.chunks))
        return min(size) >= 1 and size[0] <= full[0] and is_same_shape(full, size) and chunk_bytes < LARGEST_TILE_BYTES

    def _place(self, axis: str) -> int:
        return self._axes.index(axis)

    def _length(self, array: Any, axis: str) -> int:
        return int(array.shape[self._place(axis)])

    def _chunk(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        key = (level, row, column)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tall, wide = self._chunks[level]
        parts = {
            "y": slice(row * tall, (row + 1) * tall),
            "x": slice(column * wide, (column + 1) * wide),
            "c": slice(None),
        }
        # Of several times or depths the first.
        where = tuple(parts.get(axis, 0) for axis in self._axes)
        kept = [axis for axis in self._axes if axis in parts]
        try:
            read = np.asarray(self._arrays[level][where]).transpose([kept.index(axis) for axis in "yxc"])
        except Exception as error:  # codecs raise what they like
            raise InputError(
                f"{self.path}: its chunk {row}, {column} of level {level} cannot be decoded: {one_line(error)}",
                hint="copy the slide again",
            ) from error
        chunk = np.ascontiguousarray(read)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = chunk
                self._cached_bytes += chunk.nbytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return chunk


def _images(folder: Path) -> list[tuple[Path, Any]]:
    """Images of a folder: the folder of each, and what it says of its levels."""
    holds_several = "bioformats2raw.layout" in _about(folder)
    parts = [folder / str(number) for number in range(_MOST_IMAGES)] if holds_several else [folder]
    said = [(part, _about(part).get("multiscales")) for part in parts]
    return [(part, images[0]) for part, images in said if isinstance(images, list) and images]


def _about(folder: Path) -> dict[str, Any]:
    """What a folder says of itself: beside others in version 0.4, under `ome` in version 0.5."""
    for name in ("zarr.json", ".zattrs"):
        try:
            said = json.loads((folder / name).read_bytes())
            found = said["attributes"]["ome"] if name == "zarr.json" else said
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _pixels(array: Any, axes: list[str]) -> int:
    return int(array.shape[axes.index("x")]) * int(array.shape[axes.index("y")])


def _mpp(image: Any, place: int) -> float | None:
    """µm per pixel of the first level along an axis; None where it is not said, or not in a unit of length."""
    um = _UM.get(str(image["axes"][place].get("unit", "")).lower())
    steps = [*image["datasets"][0].get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]
    sizes = [float(step["scale"][place]) for step in steps if step.get("type") == "scale"]
    return um * float(np.prod(sizes)) if um and sizes and np.prod(sizes) > 0 else None
