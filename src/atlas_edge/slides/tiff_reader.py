"""TIFF slides that OpenSlide cannot read, such as OME-TIFF, through tifffile."""

import logging
import re
import struct
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.slides.slide import Level, Slide, sha256_of

_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6}
_UM_A_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre


class TiffSlide(Slide):
    """The first image of a TIFF, 8-bit RGB, tiled or in strips, with its sub-resolutions.

    Args:
        path: The slide.
        cache_bytes: Decoded tiles to keep.

    Raises:
        InputError: Damaged, or not 8-bit RGB.
    """

    def __init__(self, path: Path, *, cache_bytes: int) -> None:
        import tifffile

        self.path = path
        self._lock = threading.Lock()
        self._file_s = 0.0
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cache_bytes, self._cached_bytes = cache_bytes, 0
        # What it logs reaches us as an exception, or is found by `check_chain`.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        try:
            self._file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, OSError, ValueError, struct.error) as error:
            raise InputError(f"{path} cannot be opened: {error}", hint="copy the slide again") from error
        try:
            self._describe()
        except InputError:
            self._file.close()
            raise
        except (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError, struct.error) as error:
            self._file.close()
            raise InputError(f"{path} is no whole TIFF: {error}", hint="copy the slide again") from error

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see `Slide.read`."""
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        page, size = self._pages[level], self.levels[level]
        tall, wide = self._segment_shape(page)
        across = -(-size.width // wide)
        right, bottom = min(left + width, size.width), min(top + height, size.height)
        for row in range(max(top, 0) // tall, -(-bottom // tall)):
            for column in range(max(left, 0) // wide, -(-right // wide)):
                segment = self._segment(level, row * across + column)
                y, x = row * tall, column * wide
                y0, x0 = max(y, top, 0), max(x, left, 0)
                y1, x1 = min(y + segment.shape[0], bottom), min(x + segment.shape[1], right)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    @property
    def file_s(self) -> float | None:
        """See `Slide.file_s`."""
        return self._file_s

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._cache.clear()

    def _describe(self) -> None:
        series = self._file.series[0]
        page = series.keyframe
        if page.dtype != np.uint8 or page.samplesperpixel != 3 or page.planarconfig != 1 or series.ndim != 3:
            raise InputError(
                f"{self.path} holds {series.axes} {page.dtype} {series.shape}, expected one 8-bit RGB plane",
                hint="export the slide as RGB",
            )
        self.vendor = "ome-tiff" if self._file.is_ome else "tiff"
        self._pages = [level.keyframe for level in series.levels]
        self.levels = tuple(
            Level(
                width=page.imagewidth,
                height=page.imagelength,
                downsample_x=self._pages[0].imagewidth / page.imagewidth,
                downsample_y=self._pages[0].imagelength / page.imagelength,
            )
            for page in self._pages
        )
        self.stated_mpp = _ome_mpp(self._file.ome_metadata) or _tag_mpp(page)
        profile = page.tags.get("InterColorProfile")
        self.icc_sha256 = sha256_of(profile.value if profile is not None else None)

    @staticmethod
    def _segment_shape(page: Any) -> tuple[int, int]:
        if page.is_tiled:
            return page.tilelength, page.tilewidth
        return page.rowsperstrip, page.imagewidth

    def _segment(self, level: int, index: int) -> NDArray[np.uint8]:
        key = (level, index)
        page = self._pages[level]
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            begun = time.perf_counter()
            try:
                self._file.filehandle.seek(page.dataoffsets[index])
                data = self._file.filehandle.read(page.databytecounts[index])
            except (OSError, IndexError, ValueError) as error:
                raise self._damaged(index, error) from error
            self._file_s += time.perf_counter() - begun
        segment = self._decode(page, data, index)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = segment
                self._cached_bytes += segment.nbytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _decode(self, page: Any, data: bytes, index: int) -> NDArray[np.uint8]:
        if len(data) < page.databytecounts[index]:
            raise self._damaged(index, "the file ends before it")
        if not data:
            return np.full((*self._segment_shape(page), 3), 255, dtype=np.uint8)
        try:
            decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        # imagecodecs' errors are RuntimeErrors.
        except (RuntimeError, ValueError, IndexError, TypeError, struct.error, zlib.error) as error:
            raise self._damaged(index, error) from error
        if decoded is None:
            return np.full((*self._segment_shape(page), 3), 255, dtype=np.uint8)
        segment: NDArray[np.uint8] = np.asarray(decoded).reshape(decoded.shape[-3:])
        return segment

    def _damaged(self, index: int, reason: object) -> InputError:
        return InputError(f"{self.path}: its tile {index} cannot be decoded: {reason}", hint="copy the slide again")


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    # Expat expands internal entities: a description that declares any is not OME-XML.
    if not xml or "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        return None
    try:
        root = ElementTree.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", xml))
    except ElementTree.ParseError:
        return None
    pixels = next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    sizes = []
    for axis in ("X", "Y"):
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        try:
            sizes.append(float(pixels.get(f"PhysicalSize{axis}", "")) * _UM[unit])
        except (ValueError, KeyError):
            return None
    return sizes[0], sizes[1]


def _tag_mpp(page: Any) -> tuple[float | None, float | None]:
    unit = page.tags.get("ResolutionUnit")
    um = _UM_A_RESOLUTION_UNIT.get(int(unit.value)) if unit is not None else None
    sizes: list[float | None] = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        numerator, denominator = tag.value if tag is not None else (0, 1)
        sizes.append(um * denominator / numerator if um and numerator and denominator else None)
    return sizes[0], sizes[1]


def check_chain(path: Path) -> None:
    """Follow a TIFF's chain of pages; a file that was cut off ends before it does.

    Raises:
        InputError: A page lies past the end.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = start[2:3] == b"+" or start[3:4] == b"+"
        # Big: 8-byte offsets from byte 8 on, 8-byte counts, 20-byte entries; else 4, 2 and 12.
        form, first, count_form, entry = ("Q", 8, "Q", 20) if big else ("I", 4, "H", 12)
        width = struct.calcsize(form)
        (offset,) = struct.unpack(order + form, start[first : first + width].ljust(width, b"\0"))
        seen: set[int] = set()
        while offset and offset not in seen:
            seen.add(offset)
            file.seek(offset)
            head = file.read(struct.calcsize(count_form))
            count = struct.unpack(order + count_form, head)[0] if len(head) == struct.calcsize(count_form) else 0
            file.seek(offset + len(head) + count * entry)
            after = file.read(width)
            if not head or len(after) < width:
                raise InputError(
                    f"{path} is cut off: a page should be at byte {offset}, the file has {size}",
                    hint="copy the slide again",
                )
            (offset,) = struct.unpack(order + form, after)
