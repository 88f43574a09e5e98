"""Names of files that come from elsewhere: in a manifest, in a pack, in a folder."""

import os
from pathlib import Path

# Drives and streams, the other separator, and the end of a C string.
_NEVER = frozenset(":\\\0")

# Slides by name. Only scanners write the first kinds; a TIFF may be a tile as well, a DICOM file is one of a series.
SCANNER_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")
TIFF_SUFFIXES = (".tif", ".tiff")
SLIDE_SUFFIXES = (*SCANNER_SUFFIXES, *TIFF_SUFFIXES, ".dcm")


def stays_inside(name: str) -> bool:
    """Whether a name with forward slashes stays below its folder, as POSIX and as Windows read it."""
    # Windows drops dots and blanks at the end: `.. ` is `..` there.
    return not _NEVER & set(name) and all(part.rstrip(". ") for part in name.split("/"))


def printable(name: str | Path) -> str:
    r"""A file name as text: bytes that are not UTF-8 (old shares have Latin-1) as `\xf6`.

    Python keeps them as lone surrogates, which can be neither hashed nor written to a report.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def matches(pattern: Path) -> list[Path]:
    """What a pattern such as `out/*.h5` names, sorted, hidden files apart: no Windows shell expands one."""
    root = Path(pattern.anchor)
    return sorted(path for path in root.glob(str(pattern.relative_to(root))) if not path.name.startswith("."))
