"""From what the user typed to a tile source."""

import re
from pathlib import Path
from typing import Literal, Protocol

from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.paths import SLIDE_SUFFIXES
from atlas_edge.tiles.forms.class_folders import ClassFolders
from atlas_edge.tiles.forms.flat_folder import FlatFolder
from atlas_edge.tiles.forms.folders import SPLIT_NAMES
from atlas_edge.tiles.forms.hdf5 import Hdf5Tiles, hdf5_paths
from atlas_edge.tiles.forms.pack import MANIFEST_CSV, Pack
from atlas_edge.tiles.forms.parquet import ParquetTiles, parquet_paths
from atlas_edge.tiles.forms.webdataset import TarTiles
from atlas_edge.tiles.slide_spec import slide_spec
from atlas_edge.tiles.slide_tiles import SlideFolder, SlideTiles
from atlas_edge.tiles.source import TileSource
from atlas_edge.tiles.synthetic.source import DEFAULT_COUNT, SyntheticTiles

Role = Literal["calibration", "evaluation"]

# What `atlas-embed` embeds: tiles that are mostly glass are the first to leave ranges that they did not set.
_LEAST_TISSUE = 0.1
_SYNTHETIC = re.compile(r"synthetic(?::(?P<count>\d+))?(?::(?P<seed>\d+))?")
_PREFERRED: dict[str, tuple[str, ...]] = {"calibration": ("train",), "evaluation": ("test", "val")}
_FORMS = "class folders, a flat folder of images, a pack with manifest.csv, WebDataset tars, parquet, HDF5, or slides"


class _Form(Protocol):
    def __call__(self, path: Path, /, *, split: str | None = None) -> TileSource: ...


def open_tiles(spec: str | Path, *, role: Role | None = None) -> TileSource:
    """Open a tile set.

    Args:
        spec: A path (class folders, a flat folder, a pack with `manifest.csv`, WebDataset tars, parquet, HDF5),
            `PATH@SPLIT` for one split of it; a slide, `SLIDE@MPP,MPP…` for other µm per pixel than 0.5, or a folder of
            slides, whose tissue is then cut to tiles of 224 px; or `synthetic[:N[:SEED]]` for the embedded sample.
        role: `calibration` narrows a source that has splits to `train`, `evaluation` to `test` (or `val`), unless
            the split was named.

    Raises:
        InputError: Nothing is there, or it is of no known form.
        UsageError: It has no such split.
        RuntimeMissing: Parquet or HDF5 without the library that reads it.
    """
    source, named = _open(str(spec))
    if named is None and role is None:
        return source
    splits = source.splits()
    if named is not None:
        split = SPLIT_NAMES.get(named.lower(), named)
        if split not in splits:
            there = ", ".join(sorted(splits)[:20])
            raise UsageError(
                f"{source.name} has no split {named!r}, {'it has ' + there if there else 'it has no splits'}",
                hint=f"give {str(spec).removesuffix('@' + named)}{'@' + sorted(splits)[0] if splits else ''}",
            )
        source.split = split
    elif role is not None:
        source.split = next((split for split in _PREFERRED[role] if split in splits), None)
    return source


def without_split(spec: str) -> str:
    """The whole tile set of which `PATH@SPLIT` names a split; `@` in the names of folders names none."""
    return spec if Path(spec).exists() else spec.rpartition("@")[0] or spec


def _open(spec: str) -> tuple[TileSource, str | None]:
    slide = slide_spec(spec)
    if slide is not None and slide.path.suffix.lower() in SLIDE_SUFFIXES:
        return SlideTiles(slide, min_tissue=_LEAST_TISSUE), None
    path, named = Path(spec), None
    if not path.exists() and "@" in spec:
        spec, _, named = spec.rpartition("@")
        path = Path(spec)
    synthetic = _SYNTHETIC.fullmatch(spec)
    if synthetic and not path.exists():
        return SyntheticTiles(int(synthetic["count"] or DEFAULT_COUNT), int(synthetic["seed"] or 0)), named
    if spec.startswith("synthetic:"):
        raise UsageError(f"{spec!r} is no synthetic tile set", hint="use synthetic, synthetic:512 or synthetic:512:0")
    try:
        source = _form(path)(path)
        source.licence = _licence(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", hint="check the path and its rights"
        ) from error
    return source, named


def _form(path: Path) -> _Form:
    if not path.exists():
        raise InputError(f"{path} does not exist, expected {_FORMS}", hint="check the path, or use synthetic")
    if path.is_file():
        if path.name == MANIFEST_CSV:
            return lambda file, *, split=None: Pack(file.parent, split=split)
        if path.suffix == ".parquet":
            return ParquetTiles
        if path.suffix in (".h5", ".hdf5"):
            return Hdf5Tiles
        raise InputError(f"{path} is no tile set, expected {_FORMS}")
    if (path / MANIFEST_CSV).exists():
        return Pack
    if parquet_paths(path):
        return ParquetTiles
    if hdf5_paths(path):
        return Hdf5Tiles
    if SlideFolder.fits(path):
        return lambda folder, *, split=None: SlideFolder(folder, min_tissue=_LEAST_TISSUE)
    if FlatFolder.fits(path):
        return FlatFolder
    if ClassFolders.fits(path):
        return ClassFolders
    # Last: an archive that lies beside images is no tile set.
    if TarTiles.fits(path):
        return TarTiles
    raise InputError(f"{path} holds no tiles, expected {_FORMS}")


def _licence(path: Path) -> str | None:
    """The text after `Licence:` in the tile set's own README.md, if it has such a line."""
    readme = (path if path.is_dir() else path.parent) / "README.md"
    if not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            found = re.match(r"[\s*_#-]*licen[cs]e[*_]*:[*_]*\s*(.+)", line, re.IGNORECASE)
            if found:
                text = found[1].strip()
                return text if len(text) <= 200 else text[:199] + "…"
    return None
