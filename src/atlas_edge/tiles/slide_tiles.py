"""Tiles straight from slides, at one or several µm per pixel: nothing is cut to files first."""

import hashlib
import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.errors import InputError, NoTissue
from atlas_edge.system.paths import SCANNER_SUFFIXES, TIFF_SUFFIXES, printable
from atlas_edge.tiles.decode import MAX_TILE_BYTES, MAX_TILE_PIXELS
from atlas_edge.tiles.listing import Listing
from atlas_edge.tiles.slide_spec import DEFAULT_MPP, SlideSpec, slide_spec
from atlas_edge.tiles.source import TileRecord, TileSource

if TYPE_CHECKING:
    from atlas_edge.slides import Slide, TileGrid

_LOGGER = logging.getLogger("atlas_edge")
# TIFFs of a folder without a scanner's own file that are looked at: all of a million tiles would take minutes.
_LOOKED_AT = 8
_HASHED_BYTES = 2**20
_OPEN_SLIDES = 32
# Decoded tiles of all open slides together: about four times as many bytes.
_CACHE_BYTES = 128 * 2**20
_LEAST_CACHE_BYTES = 8 * 2**20
# What `atlas-embed` calls options is part of a tile set's name here.
_MPP_OPTION = re.compile(r"add --(?:tile-)?mpp (\S+)(?: to embed it as it is)?")


class SlideTiles(TileSource):
    """The tissue of one slide as a grid of tiles at each µm per pixel.

    Over a range of µm per pixel there is a grid an octave, and each of its tiles is read around its centre at a µm per
    pixel of its own, drawn from its name: log-uniform over the octave.

    The slide is opened and its tissue found once. Of all slides a few stay open for reading.

    Args:
        spec: Slide and µm per pixel.
        tile_px: Side of the tiles.
        min_tissue: Least share of tissue in a tile.

    Raises:
        NoTissue: There is none.
        InputError: No readable slide, one without µm per pixel, or one that is coarser than asked for.
        RuntimeMissing: OpenSlide is not installed.
    """

    kind = "slide"

    def __init__(self, spec: SlideSpec, *, tile_px: int = 224, min_tissue: float = 0.5) -> None:
        self.path, self.mpps, self.tile_px = spec.path, spec.mpps, tile_px
        self.mpp_range = spec.mpp_range
        self.name, self.slide_name = printable(spec.path.name), printable(spec.path.stem)
        self._spec = spec
        try:
            with _HANDLES.use(spec) as slide:
                self._grids = _plan(slide, spec, tile_px, min_tissue)
                self._finest = max(slide.mpp_x, slide.mpp_y)
        except InputError as error:
            self.close()
            rest = "" if spec.mpp_range is None else f"-{spec.mpp_range[1]:g}"
            hint = error.hint and _MPP_OPTION.sub(lambda found: f"give {spec.path}@{found[1]}{rest}", error.hint)
            raise type(error)(error.message, hint=hint) from error

    def records(self) -> Iterator[TileRecord]:
        """From the first µm per pixel to the last, row by row."""
        return iter(self.listing())

    def listing(self) -> Sequence[TileRecord]:
        """See `records`; a tile takes the twenty bytes of its place."""
        return Listing(self._record, sum(len(grid.coords) for grid in self._grids))

    def _record(self, number: int) -> TileRecord:
        grid_number = 0
        while number >= (count := len(self._grids[grid_number].coords)):
            number, grid_number = number - count, grid_number + 1
        mpp, grid = self.mpps[grid_number], self._grids[grid_number]
        x, y = (int(part) for part in grid.coords[number])
        name = f"{mpp:g}/{x}_{y}"
        own = grid.mpp if self.mpp_range is None else max(self._spec.drawn_mpp(mpp, name), self._finest)
        return TileRecord(id=name, group=self.slide_name, mpp=own, locator=(grid_number, x, y))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """See `TileSource.read`; may be called from several threads."""
        from atlas_edge.slides import TileReader
        from atlas_edge.slides.grid import tile_around

        number, x, y = (int(part) for part in record.locator)
        grid, coords = self._grids[number], np.array([[x, y]], dtype=np.int64)
        with _HANDLES.use(self._spec) as slide:
            if self.mpp_range is not None and record.mpp is not None:
                centre = (x + grid.size_x / 2, y + grid.size_y / 2)
                grid = tile_around(slide, *centre, tile_px=self.tile_px, mpp=record.mpp)
                coords = grid.coords
            found = TileReader(slide, grid).read(coords)
        if found.unreadable:
            raise InputError(f"{self.path} cannot be read at {x}, {y}: {found.unreadable[0]}")
        tile: NDArray[np.uint8] = found.pixels[0]
        return tile

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The slide, µm per pixel and corner."""
        return str(self.path), f"{record.mpp} {record.locator[1]} {record.locator[2]}"

    def splits(self) -> frozenset[str]:
        """A slide has none."""
        return frozenset()

    def fingerprint(self) -> str:
        """Over the file's size, its beginning, and where the tiles lie: a slide has gigabytes."""
        digest = hashlib.sha256(f"{self.path.stat().st_size}:{self.tile_px}:{self.mpps}".encode())
        if self.mpp_range is not None:
            digest.update(f":{self.mpp_range}".encode())
        with self.path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
        for grid in self._grids:
            digest.update(grid.coords.tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the slide."""
        _HANDLES.close(self._spec)


class SlideFolder(TileSource):
    """The tissue of every slide in a folder; a slide is a group.

    Slides are opened one after the other as their tiles are asked for. One that cannot be read, has no tissue, is
    coarser than 0.5 µm per pixel or does not say its scale is left out, and a warning names it.

    Args:
        path: See `fits`.
        min_tissue: See `SlideTiles`.

    Raises:
        RuntimeMissing: OpenSlide is not installed.
    """

    kind = "slides"

    def __init__(self, path: Path, *, min_tissue: float = 0.5) -> None:
        require_module("openslide", extra="slides")
        self.name = printable(path.resolve().name)
        self._path, self._paths, self._min_tissue = path, _scans(path), min_tissue
        self._found: dict[int, SlideTiles | InputError] = {}

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether this is a folder that holds slides: files of a form that only scanners write, or large TIFFs."""
        return bool(_scans(path))

    def records(self) -> Iterator[TileRecord]:
        """Slide by slide, by name.

        Raises:
            InputError: No slide can be used.
        """
        for number, slide in self._slides():
            for record in slide.records():
                yield replace(record, id=f"{slide.name}/{record.id}", locator=(number, *record.locator))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """See `TileSource.read`; may be called from several threads."""
        return self._slide_of(record).read(replace(record, locator=record.locator[1:]))

    def place(self, record: TileRecord) -> tuple[str, str]:
        """See `SlideTiles.place`."""
        return self._slide_of(record).place(replace(record, locator=record.locator[1:]))

    def splits(self) -> frozenset[str]:
        """Slides have none."""
        return frozenset()

    def fingerprint(self) -> str:
        """Over those of the slides."""
        return hashlib.sha256("".join(slide.fingerprint() for _, slide in self._slides()).encode()).hexdigest()

    def close(self) -> None:
        """Close the slides."""
        for slide in self._found.values():
            if isinstance(slide, SlideTiles):
                slide.close()

    def _slides(self) -> Iterator[tuple[int, SlideTiles]]:
        """Those that can be used, with their numbers."""
        for number, path in enumerate(self._paths):
            if number not in self._found:
                self._found[number] = self._open(path)
            slide = self._found[number]
            if isinstance(slide, SlideTiles):
                yield number, slide
        faults = [found for found in self._found.values() if isinstance(found, InputError)]
        if len(faults) == len(self._paths):
            raise InputError(
                f"none of {len(faults)} slides in {self._path} can be used: {faults[0].message}", hint=faults[0].hint
            ) from faults[0]

    def _open(self, path: Path) -> SlideTiles | InputError:
        try:
            return SlideTiles(SlideSpec(path, DEFAULT_MPP), min_tissue=self._min_tissue)
        except InputError as error:
            _LOGGER.warning("left out: %s%s", error.message, f" ({error.hint})" if error.hint else "")
            return error

    def _slide_of(self, record: TileRecord) -> SlideTiles:
        slide = self._found.get(int(record.locator[0]))
        if not isinstance(slide, SlideTiles):
            raise InputError(f"tile {record.id} is none of {self._path}", hint="list its tiles again")
        return slide


class _Handles:
    """The slides that are open, of all tile sets together: those last used, and those that a thread is reading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[SlideSpec, Slide] = OrderedDict()
        self._readers: Counter[SlideSpec] = Counter()

    @contextmanager
    def use(self, spec: SlideSpec) -> "Iterator[Slide]":
        from atlas_edge.slides import open_slide

        with self._lock:
            if spec not in self._open:
                cache_bytes = max(_CACHE_BYTES // (len(self._open) + 1), _LEAST_CACHE_BYTES)
                self._open[spec] = open_slide(spec.path, mpp=spec.own_mpp, cache_bytes=cache_bytes)
            self._open.move_to_end(spec)
            self._readers[spec] += 1
            slide = self._open[spec]
            idle = [other for other in self._open if not self._readers[other]]
            for other in idle[: max(len(self._open) - _OPEN_SLIDES, 0)]:
                self._open.pop(other).close()
        try:
            yield slide
        finally:
            with self._lock:
                self._readers[spec] -= 1

    def close(self, spec: SlideSpec) -> None:
        with self._lock:
            if spec in self._open and not self._readers[spec]:
                self._open.pop(spec).close()


_HANDLES = _Handles()


def slides_of(given: str) -> tuple[SlideSpec, ...]:
    """The slides of `SLIDE`, `SLIDE@MPP…`, `FOLDER` or `FOLDER@MPP…`.

    Raises:
        InputError: There is no slide, or a µm per pixel that is none.
    """
    slide = slide_spec(given)
    if slide is not None:
        return (slide,)
    folder, at, mpp = given.rpartition("@") if not Path(given).exists() else (given, "", "")
    found = [slide_spec(f"{path}{at}{mpp}") for path in _scans(Path(folder))]
    if not found or None in found:
        raise InputError(f"{given} is no slide and no folder of slides", hint="give SLIDE, SLIDE@0.5 or FOLDER@0.25-2")
    return tuple(spec for spec in found if spec is not None)


def _scans(folder: Path) -> list[Path]:
    """The slides of a folder, by name. TIFFs are slides beside those of a scanner, or where one is too large a tile."""
    if not folder.is_dir():
        return []
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SCANNER_SUFFIXES + TIFF_SUFFIXES and path.is_file()
    )
    tiffs = [path for path in files if path.suffix.lower() in TIFF_SUFFIXES]
    if len(tiffs) < len(files) or any(_is_large(path) for path in tiffs[:_LOOKED_AT]):
        return files
    return []


def _is_large(path: Path) -> bool:
    from PIL.TiffImagePlugin import TiffImageFile

    if path.stat().st_size > MAX_TILE_BYTES:
        return True
    try:
        # `Image.open` would call a slide a decompression bomb.
        with TiffImageFile(path) as image:
            return image.width * image.height > MAX_TILE_PIXELS
    except Exception:  # of a damaged file Pillow raises almost anything; whoever reads it says so
        return False


def _plan(slide: "Slide", spec: SlideSpec, tile_px: int, min_tissue: float) -> "tuple[TileGrid, ...]":
    from atlas_edge.slides import find_tissue, plan_grid
    from atlas_edge.slides.grid import check_detail

    if spec.mpp_range is not None:
        check_detail(slide, spec.mpp_range[0])
    mask = find_tissue(slide)
    grids = tuple(plan_grid(slide, mask, tile_px=tile_px, mpp=mpp, min_tissue=min_tissue) for mpp in spec.mpps)
    if not any(len(grid.coords) for grid in grids):
        raise NoTissue(
            f"{spec.path} has no tile with {min_tissue:.0%} tissue at {', '.join(f'{m:g}' for m in spec.mpps)} µm"
        )
    return grids
