"""Slides in folders: which files are one slide, and what they look like together."""

import configparser
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from atlas_edge.slides.readers.dicom import series_of
from atlas_edge.slides.readers.ngff import SUFFIX, is_ngff
from atlas_edge.system.paths import SLIDE_SUFFIXES


@dataclass(frozen=True, slots=True)
class SlideIdentity:
    """What a slide's files look like together: one that grows, is replaced or is touched looks different.

    Attributes:
        size_bytes: Of all its files.
        mtime_ns: Of the latest one.
    """

    size_bytes: int
    mtime_ns: int


def slide_identity(path: Path) -> SlideIdentity:
    """Look at a slide's files; see `slide_files`.

    Raises:
        FileNotFoundError: The slide is gone.
    """
    # A folder itself changes with whatever is written into it, be it the output.
    statuses = [path.stat()] if not path.is_dir() else []
    for other in slide_files(path)[1:]:
        try:
            statuses.append(other.stat())
        except FileNotFoundError:  # listed a moment ago; the sum says that it went
            continue
    latest = max((status.st_mtime_ns for status in statuses), default=0)
    return SlideIdentity(sum(status.st_size for status in statuses), latest)


def slide_files(path: Path) -> list[Path]:
    """The files that OpenSlide reads for a slide, the given one first.

    MRXS keeps its pixels in a folder of the same name, VMS and VMU in files that they name, DICOM in all files of one
    series in a folder, which may be given itself, OME-Zarr in all files of its own; every other form is a single file.
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return [path, *_files_below(path.with_suffix(""))]
    if suffix in (".vms", ".vmu"):
        return [path, *_named_in(path)]
    if is_ngff(path):
        return [path, *_files_below(path)]
    if path.is_dir():
        return [path, *(other for other in sorted(path.iterdir()) if _series_of(other))]
    if suffix == ".dcm":
        series = _series_of(path)
        return [path, *(other for other in _dicom_beside(path) if other != path and _series_of(other) == series)]
    return [path]


def find_slides(
    folder: Path,
    out: Path | None,
    on_folder: Callable[[Path], None] = lambda _: None,
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[Path]:
    """Slides in a folder and its subfolders, sorted; hidden ones are left out.

    Args:
        folder: Where to look.
        out: Where embeddings go; what lies there is left out if it is a folder below `folder`.
        on_folder: Called with folders that are named like slides.
        on_error: Called with what kept a subfolder from being read; raised when None. One that went meanwhile is none.

    Raises:
        FileNotFoundError: `folder` is gone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, "it is not there", str(folder))

    def failed(error: OSError) -> None:
        if isinstance(error, FileNotFoundError) and error.filename != str(folder):
            return
        if on_error is None:
            raise error
        on_error(error)

    found: list[Path] = []
    for name, folders, files in os.walk(folder, onerror=failed):
        here = Path(name)
        inside = out is not None and folder in out.parents and out in (here, *here.parents)
        folders[:] = [] if inside else [below for below in folders if not below.startswith(".")]
        if inside:
            continue
        data = {Path(file).stem for file in files if file.lower().endswith(".mrxs")}
        folders[:] = [below for below in folders if below not in data]
        # Chunks are no slides, and there may be a million.
        arrays = [below for below in folders if Path(below).suffix.lower() == SUFFIX]
        found += [here / below for below in arrays if is_ngff(here / below)]
        folders[:] = [below for below in folders if below not in arrays]
        for below in folders:
            if Path(below).suffix.lower() in SLIDE_SUFFIXES:
                on_folder(here / below)
        slides = [file for file in files if Path(file).suffix.lower() in SLIDE_SUFFIXES and not file.startswith(".")]
        found += one_a_series([here / file for file in sorted(slides)])
    yield from sorted(found)


def one_a_series(files: list[Path]) -> list[Path]:
    """Files without those of a DICOM series that an earlier one stands for."""
    kept, known = [], set()
    for path in files:
        if path.suffix.lower() == ".dcm" and (series := _series_of(path)):
            if series in known:
                continue
            known.add(series)
        kept.append(path)
    return kept


def slide_stem(path: Path) -> str:
    """A slide's name without its suffix: `scan.ome` of `scan.ome.tif`, and all of a DICOM identifier with its dots."""
    return path.stem if path.suffix.lower() in (*SLIDE_SUFFIXES, SUFFIX) else path.name


def _files_below(folder: Path) -> list[Path]:
    return [Path(name) / file for name, _, files in os.walk(folder) for file in sorted(files)]


def _named_in(path: Path) -> list[Path]:
    index = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        index.read_string(path.read_bytes().decode("latin-1"))
    except configparser.Error:
        return []
    values = {value for section in index.values() for value in section.values()}
    return sorted(file for value in values if value and (file := path.parent / Path(value).name).is_file())


def _dicom_beside(path: Path) -> list[Path]:
    return sorted(other for other in path.parent.iterdir() if other.suffix.lower() == ".dcm")


def _series_of(path: Path) -> str:
    """The series that a DICOM file says it belongs to, "" where it says nothing yet."""
    try:
        status = path.stat()
        return _series_as_it_is(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=2**16)
def _series_as_it_is(path: Path, size_bytes: int, mtime_ns: int) -> str:
    return series_of(path)
