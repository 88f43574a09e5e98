"""Memory that is held and not needed: freed and kept by the C library, or mapped from a file that was read."""

import ctypes
import re
import sys
from contextlib import suppress
from pathlib import Path

_DONTNEED = 4
_MAPPED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-.. \S+ \S+ \S+ +(.*)$", re.MULTILINE)


def give_back_freed() -> None:
    """Return freed memory to the system; glibc otherwise keeps pieces below 32 MB, together as much as a network has.

    Does nothing where the C library has no such call.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def give_back_mapped(folder: Path) -> None:
    """Take the pages of this folder's files, mapped to be read, out of the process; they are read again where needed.

    OpenVINO keeps the file of a model mapped beside the weights that it has packed for its kernels. Linux only.
    """
    prefix = f"{folder.resolve()}/"
    with suppress(OSError, AttributeError, TypeError):  # no such call, no such file, no library by no name
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        for first, last, name in _MAPPED.findall(maps):
            if name.startswith(prefix):
                madvise(int(first, 16), int(last, 16) - int(first, 16), _DONTNEED)
