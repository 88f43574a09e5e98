"""Slides through OpenSlide."""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError
from atlas_edge.slides.mpp import described_mpp, is_plausible
from atlas_edge.slides.readers.foreign import foreign_errors
from atlas_edge.slides.slide import Level, Slide, is_same_shape, sha256_of

GENERIC = "generic-tiff"


def detect_format(path: Path) -> str | None:
    """OpenSlide's name for the form, None where it knows none.

    Raises:
        RuntimeMissing: OpenSlide is not installed.
    """
    require_module("openslide", extra="slides")
    import openslide

    with foreign_errors(f"{path} cannot be looked at"):
        found: str | None = openslide.OpenSlide.detect_format(path)
    return found


class OpenSlideFile(Slide):
    """A slide that OpenSlide reads.

    Args:
        path: The slide.
        cache_bytes: Decoded tiles that OpenSlide keeps. A row of the scanner's own tiles should fit: rows of our tiles
            straddle them.

    Raises:
        InputError: Damaged.
    """

    def __init__(self, path: Path, *, cache_bytes: int) -> None:
        self.path = path
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._idle = threading.Condition()
        self._reading = 0
        self._closed = False
        self._handle = self._open()
        try:
            with foreign_errors(f"{path} cannot be opened"):
                self._describe()
        except InputError:
            self._handle.close()
            raise

    def _describe(self) -> None:
        import openslide

        properties = self._handle.properties
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.stated_mpp = _stated_mpp(properties)
        self.objective = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        self.bounds = _bounds(properties)
        # As it lies in the file: `color_profile` parses it, and raises where it is damaged.
        self.icc_profile = getattr(self._handle, "_profile", None)
        self.icc_sha256 = sha256_of(self.icc_profile)
        self._downsamples = self._handle.level_downsamples
        full_width, full_height = self._handle.dimensions
        sizes = self._handle.level_dimensions
        for number, (width, height) in enumerate(sizes):
            if width > full_width or height > full_height:
                raise InputError(
                    f"{self.path} is damaged: it says {width} x {height} px of level {number}, "
                    f"{full_width} x {full_height} px of level 0",
                    hint="copy the slide again",
                )
        self.levels = tuple(
            Level(width=width, height=height, downsample_x=full_width / width, downsample_y=full_height / height)
            for width, height in sizes
        )
        self.unusable_levels.update(n for n, size in enumerate(sizes) if not is_same_shape(sizes[0], size))

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see `Slide.read`."""
        return self.read_with_gaps(level, left, top, width, height)[0]

    def read_with_gaps(
        self, level: int, left: int, top: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a region; see `Slide.read_with_gaps`."""
        with self._open_for_a_read():
            handle = self._handle
            try:
                return self._read(handle, level, left, top, width, height)
            except InputError:
                # OpenSlide refuses every read after one that failed: later ones need another handle. The old one is
                # left to the garbage collector, since other threads may be inside it.
                with self._lock:
                    if self._handle is handle:
                        self._handle = self._open()
                raise

    def read_alone(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read through a handle of its own; see `Slide.read_alone`."""
        with self._open_for_a_read(), self._alone:
            handle = self._open()
            try:
                return self._read(handle, level, left, top, width, height)[0]
            finally:
                handle.close()

    def reads_alike(self, level: int) -> bool:
        """Regions begin at a pixel of level 0: OpenSlide shifts a level by the fraction that is left over."""
        size, down = self.levels[level], self._downsamples[level]
        return bool(size.downsample_x == size.downsample_y == down == round(down))

    def close(self) -> None:
        """Close the file once no thread is inside a read: OpenSlide frees what such a read still uses."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._reading == 0)
        self._handle.close()

    @contextmanager
    def _open_for_a_read(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise InputError(f"{self.path} has been closed", hint="open the slide again")
            self._reading += 1
        try:
            yield
        finally:
            with self._idle:
                self._reading -= 1
                self._idle.notify_all()

    def _open(self) -> Any:
        import openslide

        with foreign_errors(f"{self.path} cannot be opened"):
            handle = openslide.OpenSlide(self.path)
            handle.set_cache(openslide.OpenSlideCache(self._cache_bytes))
        return handle

    def _read(
        self, handle: Any, level: int, left: int, top: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        size = self.levels[level]
        corner = (round(left * size.downsample_x), round(top * size.downsample_y))
        with foreign_errors(f"{self.path} cannot be read at {corner}"):
            rgba = np.asarray(handle.read_region(corner, level, (width, height)))
        rgb = np.ascontiguousarray(rgba[..., :3])
        gaps = rgba[..., 3] == 0
        rgb[gaps] = 255
        return rgb, gaps


def _stated_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    stated = _number(properties.get("openslide.mpp-x")), _number(properties.get("openslide.mpp-y"))
    if all(map(is_plausible, stated)):
        return stated
    described = described_mpp(properties.get("tiff.ImageDescription"))
    return (described, described) if described else stated


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    found = [_number(properties.get(f"openslide.bounds-{name}")) for name in ("x", "y", "width", "height")]
    left, top, width, height = (-1 if value is None else round(value) for value in found)
    return (left, top, width, height) if min(left, top) >= 0 and min(width, height) > 0 else None


def _number(text: str | None) -> float | None:
    try:
        number = None if text is None else float(text)
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None
