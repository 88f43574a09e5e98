"""A TIFF's chain of pages."""

import struct
from pathlib import Path

from atlas_edge.errors import InputError
from atlas_edge.slides.foreign import foreign_errors

_MOST_PAGES = 100_000


def check_chain(path: Path) -> None:
    """Follow a TIFF's chain of pages; a file that was cut off ends before it does.

    Raises:
        InputError: A page lies past the end.
    """
    size = path.stat().st_size
    with foreign_errors(f"{path} is no whole TIFF"), path.open("rb") as file:
        start = file.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = start[2:3] == b"+" or start[3:4] == b"+"
        # Big: 8-byte offsets from byte 8 on, 8-byte counts, 20-byte entries; else 4, 2 and 12.
        form, first, count_form, entry = ("Q", 8, "Q", 20) if big else ("I", 4, "H", 12)
        width = struct.calcsize(form)
        (offset,) = struct.unpack(order + form, start[first : first + width].ljust(width, b"\0"))
        seen: set[int] = set()
        while offset and offset not in seen and len(seen) < _MOST_PAGES:
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
