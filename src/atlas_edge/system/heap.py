"""Memory that was freed and that the C library keeps."""

import ctypes
import sys
from contextlib import suppress


def give_back_freed() -> None:
    """Return freed memory to the system; glibc otherwise keeps pieces below 32 MB, together as much as a network has.

    Does nothing where the C library has no such call.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
