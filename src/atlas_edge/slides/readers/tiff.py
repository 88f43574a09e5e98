"""TIFF slides that OpenSlide cannot read, or not wholly, such as OME-TIFF: through tifffile."""

import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.slides.readers.byte_runs import Piece, byte_runs
from atlas_edge.slides.readers.foreign import foreign_errors, one_line, open_tiff
from atlas_edge.slides.readers.ome import ome_images
from atlas_edge.slides.readers.tiff_chain import LARGEST_TILE_BYTES
from atlas_edge.slides.slide import Level, Slide, is_same_shape, sha256_of

_UM_A_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre
_NO_SLIDE = re.compile(r"label|macro|thumb|overview|barcode", re.IGNORECASE)


class TiffSlide(Slide):
    """The largest image of a TIFF, 8-bit RGB, tiled or in strips, with its sub-resolutions.

    Args:
        path: The slide.
        cache_bytes: Decoded tiles to keep.

    Raises:
        InputError: Damaged, or not 8-bit RGB.
    """

    def __init__(self, path: Path, *, cache_bytes: int) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file_s = 0.0
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cache_bytes, self._cached_bytes = cache_bytes, 0
        self._damage: dict[tuple[int, int], InputError] = {}
        with foreign_errors(f"{path} cannot be opened"):
            self._file = open_tiff(path)
        try:
            with foreign_errors(f"{path} is no whole TIFF"):
                self._describe()
        except InputError:
            self._file.close()
            raise

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see `Slide.read`."""
        return self._read(level, left, top, width, height)

    def read_with_gaps(
        self, level: int, left: int, top: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a region; see `Slide.read_with_gaps`."""
        gaps = np.zeros((height, width), dtype=bool)
        page, size = self._pages[level], self.levels[level]
        tall, wide = segment_shape(page)
        across = -(-size.width // wide)
        for row in range(top // tall, -(-min(top + height, size.height) // tall)):
            for column in range(left // wide, -(-min(left + width, size.width) // wide)):
                if page.databytecounts[row * across + column] == 0:
                    y, x = row * tall - top, column * wide - left
                    gaps[max(y, 0) : y + tall, max(x, 0) : x + wide] = True
        return self.read(level, left, top, width, height), gaps

    def read_alone(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read and decode anew what could not be decoded; see `Slide.read_alone`."""
        return self._read(level, left, top, width, height, anew=True)

    @property
    def file_s(self) -> float | None:
        """See `Slide.file_s`."""
        return self._file_s

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._cache.clear()

    def _describe(self) -> None:
        series = self._series()
        page = series.keyframe
        if not is_rgb(page) or series.ndim != 3:
            raise InputError(
                f"{self.path} holds {series.axes} {page.dtype} {series.shape}, expected one 8-bit RGB plane",
                hint="export the slide as RGB",
            )
        check_segments(self.path, page)
        self.vendor = "ome-tiff" if self._file.is_ome else "tiff"
        self._pages = [page] + [level.keyframe for level in series.levels[1:] if self._is_level(page, level.keyframe)]
        self.levels = tuple(
            Level(
                width=page.imagewidth,
                height=page.imagelength,
                downsample_x=self._pages[0].imagewidth / page.imagewidth,
                downsample_y=self._pages[0].imagelength / page.imagelength,
            )
            for page in self._pages
        )
        self.stated_mpp = _tag_mpp(page)
        size = (page.imagewidth, page.imagelength)
        images = [image for image in ome_images(self._file.ome_metadata) if (image.width, image.height) == size]
        for image in sorted(images, key=lambda image: image.name != series.name)[:1]:
            self.objective = image.objective
            if image.mpp[0] is not None:
                self.stated_mpp = image.mpp
        profile = page.tags.get("InterColorProfile")
        self.icc_profile = profile.value if profile is not None else None
        self.icc_sha256 = sha256_of(self.icc_profile)

    def _series(self) -> Any:
        """The slide among the images of a file: the label and the macro come first in some."""
        images = [series for series in self._file.series if is_rgb(series.keyframe) and series.ndim == 3]
        slides = [series for series in images if not _NO_SLIDE.search(series.name or "")]
        return max(slides or images or self._file.series[:1], key=lambda series: series.size)

    def _is_level(self, full: Any, page: Any) -> bool:
        """Whether a page can be read as a sub-resolution: a damaged one is left out, the finer ones do."""
        size = (page.imagewidth, page.imagelength)
        if not is_rgb(page) or min(size) < 1 or page.imagewidth > full.imagewidth:
            return False
        if not is_same_shape((full.imagewidth, full.imagelength), size):
            return False
        try:
            check_segments(self.path, page)
        except InputError:
            return False
        return True

    def _read(
        self, level: int, left: int, top: int, width: int, height: int, *, anew: bool = False
    ) -> NDArray[np.uint8]:
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        page, size = self._pages[level], self.levels[level]
        tall, wide = segment_shape(page)
        across = -(-size.width // wide)
        right, bottom = min(left + width, size.width), min(top + height, size.height)
        rows = range(max(top, 0) // tall, -(-bottom // tall))
        columns = range(max(left, 0) // wide, -(-right // wide))
        indices = [row * across + column for row in rows for column in columns]
        read = {} if anew else self._read_together(level, indices)
        for row in rows:
            for column in columns:
                segment = self._segment(level, row * across + column, read, anew=anew)
                y, x = row * tall, column * wide
                y0, x0 = max(y, top, 0), max(x, left, 0)
                y1, x1 = min(y + segment.shape[0], bottom), min(x + segment.shape[1], right)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    def _read_together(self, level: int, indices: Sequence[int]) -> dict[int, bytes]:
        """The bytes of those segments that nobody has decoded yet, wherever several can be had by one request."""
        page = self._pages[level]
        with self._lock:
            absent = [
                index for index in indices if (level, index) not in self._cache and (level, index) not in self._damage
            ]
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        step = len(page.dataoffsets) // planes
        places = [index + plane * step for index in absent for plane in range(planes)]
        found: dict[int, bytes] = {}
        for run in byte_runs(Piece(page.dataoffsets[place], page.databytecounts[place], place) for place in places):
            if len(run) < 2:
                continue
            start = run[0].offset
            try:
                data = self._bytes(start, max(piece.end for piece in run) - start, anew=False)
            except Exception as error:  # tifffile's handle raises what it likes when a share was gone
                raise InputError(
                    f"{self.path} cannot be read: {one_line(error)}", hint="see that its disk or share is there"
                ) from error
            # What the file has no bytes for is asked for alone, and told.
            whole = [piece for piece in run if piece.end - start <= len(data)]
            found |= {piece.key: data[piece.offset - start : piece.end - start] for piece in whole}
        return found

    def _segment(self, level: int, index: int, read: Mapping[int, bytes], *, anew: bool = False) -> NDArray[np.uint8]:
        key = (level, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            if key in self._damage and not anew:
                raise self._damage[key]
        page = self._pages[level]
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        step = len(page.dataoffsets) // planes
        try:
            parts = [self._decoded(page, index + plane * step, read, anew=anew) for plane in range(planes)]
        except InputError as error:
            # Many tiles of ours lie on one: it is decoded in vain once, unless the file could not be read.
            if not isinstance(error.__cause__, OSError):
                self._damage[key] = error
            raise
        segment = np.ascontiguousarray(parts[0] if planes == 1 else np.concatenate(parts, axis=2))[..., :3]
        with self._lock:
            self._damage.pop(key, None)
            if key not in self._cache:
                self._cache[key] = segment
                self._cached_bytes += segment.nbytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _decoded(self, page: Any, index: int, read: Mapping[int, bytes], *, anew: bool) -> NDArray[np.uint8]:
        samples = 1 if page.planarconfig == 2 else page.samplesperpixel
        tall, wide = segment_shape(page)
        try:
            offset, length = page.dataoffsets[index], page.databytecounts[index]
            data = read[index] if index in read else self._bytes(offset, length, anew=anew)
            if len(data) < length:
                raise EOFError("the file ends before it")
            decoded = page.decode(data, index, jpegtables=page.jpegtables)[0] if data else None
            if decoded is None:  # the scanner did not look there
                return np.full((tall, wide, samples), 255, dtype=np.uint8)
            segment = np.asarray(decoded).reshape(decoded.shape[-3:])
            if not page.is_tiled:  # the last strip is lower
                tall = min(tall, page.imagelength - index % -(-page.imagelength // tall) * tall)
            if segment.shape != (tall, wide, samples) or segment.dtype != np.uint8:
                raise ValueError(f"it holds {segment.dtype} {segment.shape}, expected {(tall, wide, samples)}")
        # Codecs raise what they like, and are asked to decode damaged data here.
        except Exception as error:
            raise InputError(
                f"{self.path}: its tile {index} cannot be decoded: {one_line(error)}", hint="copy the slide again"
            ) from error
        return segment

    def _bytes(self, offset: int, length: int, *, anew: bool) -> bytes:
        if not 0 <= length <= LARGEST_TILE_BYTES:
            raise ValueError(f"it should be of {length} bytes")
        if anew:  # a handle from before a share was gone stays useless
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        data: bytes
        begun = time.perf_counter()
        if sys.platform != "win32":  # reads side by side, each of which may wait for a share
            data = os.pread(self._file.filehandle.fileno(), length, offset)
        else:
            with self._lock:
                self._file.filehandle.seek(offset)
                data = self._file.filehandle.read(length)
        with self._lock:
            self._file_s += time.perf_counter() - begun
        return data


def is_rgb(page: Any) -> bool:
    """Whether a page of tifffile's is 8-bit RGB, with or without alpha, its channels together or apart."""
    return bool(page is not None and page.dtype == np.uint8 and page.samplesperpixel in (3, 4))


def segment_shape(page: Any) -> tuple[int, int]:
    """Height and width of the tiles or strips of a page."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def check_segments(path: Path, page: Any) -> None:
    """See to it that a page has the tiles or strips that its size asks for: damaged sizes do not get further.

    Raises:
        InputError: It has others.
    """
    tall, wide = segment_shape(page)
    if min(tall, wide, page.imagelength, page.imagewidth) < 1 or tall * wide * 4 > LARGEST_TILE_BYTES:
        raise InputError(
            f"{path} says {page.imagewidth} x {page.imagelength} px in tiles of {wide} x {tall} px",
            hint="copy the slide again",
        )
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    expected = -(-page.imagelength // tall) * -(-page.imagewidth // wide) * planes
    found = min(len(page.dataoffsets), len(page.databytecounts))
    if found != expected:
        raise InputError(
            f"{path} has {found} tiles, {page.imagewidth} x {page.imagelength} px need {expected}",
            hint="copy the slide again",
        )


def _tag_mpp(page: Any) -> tuple[float | None, float | None]:
    unit = page.tags.get("ResolutionUnit")
    um = _UM_A_RESOLUTION_UNIT.get(int(unit.value)) if unit is not None else None
    sizes: list[float | None] = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        numerator, denominator = tag.value if tag is not None else (0, 1)
        sizes.append(um * denominator / numerator if um and numerator and denominator else None)
    return sizes[0], sizes[1]
