"""A TIFF's chain of pages, looked at before a library trusts it: C libraries abort the process on forged sizes."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from atlas_edge.errors import InputError
from atlas_edge.slides.readers.foreign import foreign_errors

LARGEST_TILE_BYTES = 2**30
_MOST_PAGES = 100_000
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 256, 257, 277, 284, 322, 323, 324


@dataclass(frozen=True, slots=True)
class _Layout:
    order: str  # of bytes
    offset: str
    count: str
    entry: str
    first: int


def check_tiff(path: Path) -> None:
    """Follow a TIFF's chain of pages, and see to it that what they say of their tiles can be.

    Raises:
        InputError: A page or a tag's values lie past the end, as in a file that was cut off, or a page's tiles do not
            fit its size.
    """
    size = path.stat().st_size
    with foreign_errors(f"{path} is no whole TIFF"), path.open("rb") as file:
        for tags in _pages(file, size, path):
            for tag, (count, bytes_each, _) in tags.items():
                if count * bytes_each > size:
                    raise InputError(
                        f"{path} is damaged: its tag {tag} asks for {count * bytes_each} bytes, the file has {size}",
                        hint="copy the slide again",
                    )
            _check_tiles(path, {tag: value for tag, (_, _, value) in tags.items()}, tags.get(_TILE_OFFSETS, (0,))[0])


def _pages(file: BinaryIO, size: int, path: Path) -> Iterator[dict[int, tuple[int, int, int]]]:
    """Tags of each page: number -> count, bytes of one value, and the first value where it is a whole number."""
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:3] == b"+" or start[3:4] == b"+"
    layout = _Layout(order, "Q", "Q", "HHQ8s", 8) if big else _Layout(order, "I", "H", "HHI4s", 4)
    width, head = struct.calcsize(layout.offset), struct.calcsize(layout.count)
    entry = struct.Struct(order + layout.entry)
    (offset,) = struct.unpack(order + layout.offset, start[layout.first : layout.first + width].ljust(width, b"\0"))
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MOST_PAGES:
        seen.add(offset)
        file.seek(offset)
        said = file.read(head)
        count = struct.unpack(order + layout.count, said)[0] if len(said) == head else 0
        entries = file.read(min(count * entry.size, size))
        after = file.read(width)
        if not said or len(entries) < count * entry.size or len(after) < width:
            raise InputError(
                f"{path} is cut off: a page should be at byte {offset}, the file has {size}",
                hint="copy the slide again",
            )
        yield {
            tag: (number, _BYTES.get(kind, 1), _first(order, kind, value))
            for tag, kind, number, value in entry.iter_unpack(entries)
        }
        (offset,) = struct.unpack(order + layout.offset, after)


def _first(order: str, kind: int, value: bytes) -> int:
    form = _WHOLE_NUMBERS.get(kind)
    if form is None or struct.calcsize(form) > len(value):
        return 0
    return int(struct.unpack_from(order + form, value)[0])


def _check_tiles(path: Path, tags: dict[int, int], found: int) -> None:
    if _TILE_WIDTH not in tags and _TILE_HEIGHT not in tags:
        return
    wide, tall = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR) == 2 else 1
    if min(wide, tall, width, height) < 1 or wide * tall * 4 > LARGEST_TILE_BYTES:
        raise InputError(
            f"{path} is damaged: it says {width} x {height} px in tiles of {wide} x {tall} px",
            hint="copy the slide again",
        )
    needed = -(-width // wide) * -(-height // tall) * planes
    if found < needed:
        raise InputError(
            f"{path} is damaged: it has {found} tiles, {width} x {height} px need {needed}", hint="copy the slide again"
        )
