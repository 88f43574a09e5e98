"""Tiles straight from a slide, at one or several µm per pixel: nothing is cut to files first."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.tiles.source import TileRecord, TileSource

if TYPE_CHECKING:
    from atlas_edge.slides import Slide, TileReader

DEFAULT_MPP = (0.5,)
_SPEC = re.compile(r"(?P<path>.+?)(?:@(?P<mpp>[0-9.]+(?:,[0-9.]+)*))?")
_TILE_SETS = frozenset({".parquet", ".h5", ".hdf5", ".csv"})
# Only scanners write these; a folder of TIFFs may hold tiles.
_SCANNERS = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi"})
SLIDE_SUFFIXES = _SCANNERS | {".tif", ".tiff", ".dcm"}
_HASHED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class SlideSpec:
    """`SLIDE` or `SLIDE@MPP,MPP…`, as the user typed it."""

    path: Path
    mpps: tuple[float, ...]


def slide_spec(spec: str) -> SlideSpec | None:
    """Read `scan.svs` or `scan.svs@0.5,1`; None where that is no slide's file but, say, a folder of tiles.

    Raises:
        InputError: A µm per pixel that is no number above 0.
    """
    found = _SPEC.fullmatch(spec)
    if found is None or not (path := Path(found["path"])).is_file() or path.suffix.lower() in _TILE_SETS:
        return None
    if found["mpp"] is None:
        return SlideSpec(path, DEFAULT_MPP)
    try:
        mpps = tuple(float(part) for part in found["mpp"].split(","))
    except ValueError:
        mpps = (0.0,)
    if min(mpps) <= 0:
        raise InputError(f"{spec}: {found['mpp']} is no µm per pixel", hint=f"give {path}@0.5 or {path}@0.5,1,2")
    return SlideSpec(path, mpps)


class SlideTiles(TileSource):
    """The tissue of one slide as a grid of tiles at each µm per pixel.

    Args:
        spec: Slide and µm per pixel.
        tile_px: Side of the tiles.
        min_tissue: Least share of tissue in a tile.

    Raises:
        InputError: No readable slide, one without µm per pixel or tissue, or one that is coarser than asked for.
        RuntimeMissing: OpenSlide is not installed.
    """

    kind = "slide"

    def __init__(self, spec: SlideSpec, *, tile_px: int = 224, min_tissue: float = 0.5) -> None:
        self.path, self.mpps, self.tile_px = spec.path, spec.mpps, tile_px
        self.name = spec.path.name
        self._slide, self._readers = _open(spec, tile_px, min_tissue)

    def records(self) -> Iterator[TileRecord]:
        """From the first µm per pixel to the last, row by row."""
        for number, (mpp, reader) in enumerate(zip(self.mpps, self._readers, strict=True)):
            for x, y in reader.grid.coords.tolist():
                yield TileRecord(
                    id=f"{mpp:g}/{x}_{y}", group=self._slide.name, mpp=reader.grid.mpp, locator=(number, x, y)
                )

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """See `TileSource.read`; may be called from several threads."""
        number, x, y = (int(part) for part in record.locator)
        found = self._readers[number].read(np.array([[x, y]], dtype=np.int64))
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
        with self.path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
        for reader in self._readers:
            digest.update(reader.grid.coords.tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()


class SlideFolder(TileSource):
    """The tissue of every slide in a folder; a slide is a group.

    Args:
        path: See `fits`.
        min_tissue: See `SlideTiles`.

    Raises:
        InputError: See `SlideTiles`.
        RuntimeMissing: OpenSlide is not installed.
    """

    kind = "slides"

    def __init__(self, path: Path, *, min_tissue: float = 0.5) -> None:
        self.name = path.name
        self._slides: list[SlideTiles] = []
        try:
            for slide in _scans(path):
                self._slides.append(SlideTiles(SlideSpec(slide, DEFAULT_MPP), min_tissue=min_tissue))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether this is a folder that holds slides of forms that only scanners write."""
        return bool(_scans(path))

    def records(self) -> Iterator[TileRecord]:
        """Slide by slide, by name."""
        for number, slide in enumerate(self._slides):
            for record in slide.records():
                yield replace(record, id=f"{slide.name}/{record.id}", locator=(number, *record.locator))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """See `TileSource.read`; may be called from several threads."""
        return self._slides[int(record.locator[0])].read(replace(record, locator=record.locator[1:]))

    def place(self, record: TileRecord) -> tuple[str, str]:
        """See `SlideTiles.place`."""
        return self._slides[int(record.locator[0])].place(replace(record, locator=record.locator[1:]))

    def splits(self) -> frozenset[str]:
        """Slides have none."""
        return frozenset()

    def fingerprint(self) -> str:
        """Over those of the slides."""
        return hashlib.sha256("".join(slide.fingerprint() for slide in self._slides).encode()).hexdigest()

    def close(self) -> None:
        """Close the slides."""
        for slide in self._slides:
            slide.close()


def _scans(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SCANNERS and path.is_file())


def _open(spec: SlideSpec, tile_px: int, min_tissue: float) -> "tuple[Slide, tuple[TileReader, ...]]":
    from atlas_edge.slides import TileReader, find_tissue, open_slide, plan_grid

    slide = None
    try:
        slide = open_slide(spec.path)
        mask = find_tissue(slide)
        grids = [plan_grid(slide, mask, tile_px=tile_px, mpp=mpp, min_tissue=min_tissue) for mpp in spec.mpps]
    except InputError as error:
        if slide is not None:
            slide.close()
        raise InputError(error.message, hint=f"give {spec.path}@MPP with a µm per pixel that the slide has") from error
    if not any(len(grid.coords) for grid in grids):
        slide.close()
        raise InputError(
            f"{spec.path} has no tile with {min_tissue:.0%} tissue at {', '.join(f'{m:g}' for m in spec.mpps)} µm"
        )
    return slide, tuple(TileReader(slide, grid) for grid in grids)
