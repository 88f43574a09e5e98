"""From a file to a slide, and from its metadata to µm per pixel."""

import importlib.util
from pathlib import Path

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides.mpp import settle_mpp
from atlas_edge.slides.readers.dicom import slide_in
from atlas_edge.slides.readers.foreign import foreign_errors, open_tiff
from atlas_edge.slides.readers.ngff import NgffSlide, is_ngff
from atlas_edge.slides.readers.probe import probe
from atlas_edge.slides.readers.tiff_chain import check_tiff
from atlas_edge.slides.slide import Slide

_CZI_START = b"ZISRAWFILE"
_CZI_HINT = "export it as OME-TIFF, from ZEN or by bioformats2raw and raw2ometiff; if it was cut off, copy it again"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_slide(
    path: Path,
    *,
    mpp: float | None = None,
    override: bool = False,
    said_by: str = "--mpp",
    cache_bytes: int = 128 * 2**20,
) -> Slide:
    """Open a slide with OpenSlide, or with tifffile where it is an OME-TIFF or one that OpenSlide cannot read.

    Args:
        path: SVS, NDPI, MRXS, SCN, BIF, generic or OME-TIFF, DICOM (any file of the slide, or its folder), or the
            folder of an OME-Zarr.
        mpp: µm per pixel of level 0, for a slide that does not say it.
        override: `mpp` holds, whatever the slide says.
        said_by: Where the user gave `mpp`.
        cache_bytes: Decoded tiles that the reader keeps.

    Raises:
        InputError: Missing, empty, another folder, damaged, of an unknown form, or without µm per pixel.
        UsageError: `mpp` is no scanner's.
        RuntimeMissing: OpenSlide, tifffile or zarr is not installed.
    """
    check_file(path)
    slide = _open(path, cache_bytes)
    try:
        settle_mpp(slide, mpp, override=override, said_by=said_by)
    except (InputError, UsageError):
        slide.close()
        raise
    return slide


def check_file(path: Path) -> None:
    """Raise InputError where a path is missing, empty, or a folder other than of one DICOM slide or OME-Zarr."""
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a slide", hint="check the path")
    if path.is_dir():
        if not is_ngff(path):
            slide_in(path)
        return
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes), expected a slide", hint="copy the slide again")


def _open(path: Path, cache_bytes: int) -> Slide:
    from atlas_edge.slides.readers.direct import DIRECT_VENDORS, open_direct
    from atlas_edge.slides.readers.openslide import GENERIC, OpenSlideFile, detect_format

    if path.is_dir():
        if is_ngff(path):
            return NgffSlide(path, cache_bytes=cache_bytes)
        path = slide_in(path)
    with path.open("rb") as file:
        is_tiff = file.read(4) in _TIFF_STARTS
    if not is_tiff:
        probe(path)
    form = detect_format(path)
    # A big NDPI counts its offsets in a way of its own.
    if is_tiff and form != "hamamatsu":
        check_tiff(path)
    # OpenSlide reads the first page of a tiled OME-TIFF, and neither its OME-XML nor its SubIFDs.
    if is_tiff and (form is None or (form == GENERIC and _is_ome(path))):
        require_module("tifffile", extra="slides")
        from atlas_edge.slides.readers.tiff import TiffSlide

        return TiffSlide(path, cache_bytes=cache_bytes)
    if form is None and _is_czi(path):
        raise InputError(f"{path} is a Zeiss CZI, which this OpenSlide does not read", hint=_CZI_HINT)
    if form is None:
        raise InputError(
            f"{path} is of no slide form that OpenSlide knows, nor a TIFF", hint="check that the file is whole"
        )
    if is_tiff and form not in DIRECT_VENDORS:
        probe(path)
    try:
        slide = OpenSlideFile(path, cache_bytes=cache_bytes)
    except InputError as error:
        # OpenSlide reads few forms of CZI, and what it says of the others is no damage.
        raise InputError(error.message, hint=_CZI_HINT if _is_czi(path) else error.hint) from error
    return open_direct(slide, cache_bytes=cache_bytes) or slide


def _is_czi(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_CZI_START)) == _CZI_START


def _is_ome(path: Path) -> bool:
    if importlib.util.find_spec("tifffile") is None:
        return False
    try:
        with foreign_errors(str(path)), open_tiff(path) as file:
            return bool(file.is_ome)
    except InputError:
        return False
