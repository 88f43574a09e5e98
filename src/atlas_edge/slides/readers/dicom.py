"""DICOM slides: many files, one series, in one folder."""

import re
from pathlib import Path

from atlas_edge.errors import InputError

# The unique identifier of the series (0020,000E) in the explicit little-endian form that all whole slides have.
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI..([0-9.]{1,64})", re.DOTALL)
_HEADER_BYTES = 2**16


def series_of(path: Path) -> str:
    """Identifier of the series that a DICOM file says it belongs to, "" where it says none.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        found = _SERIES.search(file.read(_HEADER_BYTES))
    return found[1].decode("ascii") if found else ""


def slide_in(folder: Path) -> Path:
    """The first file of the one DICOM series in a folder; OpenSlide finds the others.

    Raises:
        InputError: The folder holds no series, or several.
    """
    files = {path: series_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    series = {found for found in files.values() if found}
    if not series:
        raise InputError(f"{folder} is a folder, expected a slide file", hint="give the slide's own file")
    if len(series) > 1:
        raise InputError(f"{folder} holds {len(series)} DICOM slides, expected one", hint="give a file of one of them")
    return next(path for path, found in files.items() if found)
