"""What tells whether a file is still the one that was looked at, without reading it."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as its folder knows it.

    Every write changes it: `mtime_ns` can be set back, `ctime_ns` cannot (on Windows it is the time of creation).
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int


def stamp(path: Path) -> Stamp:
    """Of the file that a path, or the link there, leads to.

    Raises:
        OSError: There is none.
    """
    return _stamp(path.stat())


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino)
