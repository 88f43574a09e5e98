"""What downstream tools read: HDF5 with `features` and `coords` as CLAM and TRIDENT write it, zarr, parquet, pt."""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.cli import require_module
from atlas_edge.embed.output.anndata import write_anndata
from atlas_edge.embed.output.attributes import Attributes, coords_attributes
from atlas_edge.embed.output.rows import ROWS, kept_rows, of_skipped, of_slide, of_tiles
from atlas_edge.embed.output.spatialdata import write_spatialdata
from atlas_edge.embed.output.tokens import write_tokens
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.embed.resume.plan import ABOUT
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides import TileGrid
from atlas_edge.slides.readers.ngff import is_ngff
from atlas_edge.system.atomic import replace_file

# Coordinates, measures, and what a container needs.
_BYTES_A_ROW_BESIDES = 64
_BYTES_A_SKIPPED = 64  # as text at most
_CONTAINER_BYTES = 2**15


class DiskFull(InputError):
    """No room for the journal or the output: no fault of the slide."""


def write_output(out: Path, journal: Journal, grid: TileGrid, attributes: Attributes) -> int:
    """Write `out` whole or not at all; unreadable tiles are left out of it and listed beside the features.

    Its suffix chooses the form: `.h5` or `.hdf5`, `.h5ad` (AnnData), `.zarr` (a folder, zarr format 3),
    `.spatialdata` (another, as SpatialData has it), `.parquet` (one row a tile), `.pt` (the features alone, as CLAM
    loads them).

    Returns:
        Rows written.

    Raises:
        UsageError: Another suffix.
        RuntimeMissing: The library for the form is not installed.
    """
    write = check_form(out)
    keep = np.ones(len(grid.coords), dtype=bool)
    keep[list(journal.unreadable)] = False
    partial = out.parent / f".{out.name}.new"
    _remove(partial)
    try:
        _reserve(partial, output_bytes(len(keep), journal.row_bytes, grid.skipped_tiles))
        write(partial, journal, keep, grid, attributes)
        _sync(partial)
        if out.is_dir():
            shutil.rmtree(out)
        replace_file(partial, out)
    finally:
        _remove(partial)
    return int(keep.sum())


def check_form(out: Path) -> Callable[[Path, Journal, NDArray[np.bool_], TileGrid, Attributes], None]:
    """What writes the form that a suffix names; see `write_output`."""
    forms = {
        ".h5": (_write_hdf5, {"h5py": "slides"}),
        ".hdf5": (_write_hdf5, {"h5py": "slides"}),
        ".h5ad": (write_anndata, {"h5py": "slides"}),
        ".zarr": (_write_zarr, {"zarr": "zarr"}),
        ".spatialdata": (write_spatialdata, {"zarr": "zarr", "pyarrow": "tiles"}),
        ".parquet": (_write_parquet, {"pyarrow": "tiles"}),
        ".pt": (_write_pt, {"torch": "torch"}),
    }
    if out.suffix not in forms:
        raise UsageError(f"{out} ends in {out.suffix!r}, expected one of {', '.join(forms)}", hint="use --out slide.h5")
    if is_ngff(out):
        raise UsageError(f"{out} is a slide, which no embeddings replace", hint="choose another --out")
    write, modules = forms[out.suffix]
    for module, extra in modules.items():
        require_module(module, extra=extra)
    return write


def check_room(out: Path, *, rows: int, journal_rows: int, row_bytes: int, skipped: int = 0) -> None:
    """Refuse to begin where the journal and the output cannot both fit.

    Args:
        out: Output.
        rows: Tiles of the slide.
        journal_rows: Tiles that the journal holds already.
        row_bytes: Of all that is kept of a tile.
        skipped: Tiles that are listed only.

    Raises:
        DiskFull: Too little space.
    """
    needed = (rows - journal_rows) * row_bytes + output_bytes(rows, row_bytes, skipped)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise _disk_full(out, f"{rows} tiles need {needed / 1e6:.2f} MB more, {free / 1e6:.2f} MB are free")


@contextmanager
def explained_disk_full(out: Path) -> Iterator[None]:
    """Turn what the system says of a full disk into a DiskFull that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            raise _disk_full(out, "no space is left") from error
        raise


def output_bytes(rows: int, row_bytes: int, skipped: int = 0) -> int:
    """Size of an output with so many tiles, and so many that are listed only, at most."""
    return rows * (row_bytes + _BYTES_A_ROW_BESIDES) + skipped * _BYTES_A_SKIPPED + _CONTAINER_BYTES


def _reserve(path: Path, size_bytes: int) -> None:
    """Meet a full disk here: HDF5 crashes the process when closing a file finds no room for what it held back."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    path.unlink()


def _disk_full(out: Path, why: str) -> DiskFull:
    return DiskFull(f"the disk of {out} is full: {why}", hint="make room and run it again: it goes on where it stopped")


def _write_hdf5(path: Path, journal: Journal, keep: NDArray[np.bool_], grid: TileGrid, attributes: Attributes) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        coords = file.create_dataset("coords", data=grid.coords[keep])
        coords.attrs.update(coords_attributes(grid, attributes))
        file.create_dataset("unreadable_coords", data=grid.coords[~keep])
        for name, values in (of_tiles(journal, keep, grid) | of_skipped(keep, grid)).items():
            file.create_dataset(name, data=values)
        for name, (values, about) in of_slide(journal, keep, grid).items():
            file.create_dataset(name, data=values).attrs.update(about)
        write_tokens(file.create_dataset, journal, keep)
        features = file.create_dataset("features", (int(keep.sum()), attributes["embed_dim"]), dtype="<f4")
        for start, _, rows in kept_rows(journal, keep, grid):
            features[start : start + len(rows)] = rows


def _write_zarr(path: Path, journal: Journal, keep: NDArray[np.bool_], grid: TileGrid, attributes: Attributes) -> None:
    import zarr

    group = zarr.open_group(path, mode="w", attributes=attributes)
    shape = (int(keep.sum()), attributes["embed_dim"])
    coords = group.create_array("coords", data=grid.coords[keep], chunks=(max(shape[0], 1), 2))
    coords.update_attributes(coords_attributes(grid, attributes))
    group.create_array("unreadable_coords", data=grid.coords[~keep].reshape(-1, 2))
    for name, values in (of_tiles(journal, keep, grid) | of_skipped(keep, grid)).items():
        group.create_array(name, data=values, chunks=(max(len(values), 1), *values.shape[1:]))
    for name, (values, about) in of_slide(journal, keep, grid).items():
        group.create_array(name, data=values).update_attributes(about)
    write_tokens(group.create_array, journal, keep, in_chunks=True)
    features = group.create_array("features", shape=shape, chunks=(min(ROWS, max(shape[0], 1)), shape[1]), dtype="<f4")
    for start, _, rows in kept_rows(journal, keep, grid):
        features[start : start + len(rows)] = rows


def _write_parquet(
    path: Path, journal: Journal, keep: NDArray[np.bool_], grid: TileGrid, attributes: Attributes
) -> None:
    import pyarrow
    import pyarrow.parquet

    dim = attributes["embed_dim"]
    about = {**attributes, **coords_attributes(grid, attributes), "unreadable_coords": grid.coords[~keep].tolist()}
    about |= {name: values.tolist() for name, values in of_skipped(keep, grid).items()}
    fields = [("x", pyarrow.int64()), ("y", pyarrow.int64()), ("features", pyarrow.list_(pyarrow.float32(), dim))]
    measured = of_tiles(journal, keep, grid)
    fields += [(name, pyarrow.float32()) for name in measured]
    schema = pyarrow.schema(fields, metadata={key: str(value) for key, value in about.items()})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start, coords, rows in kept_rows(journal, keep, grid):
            features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.ravel()), dim)
            rest = [values[start : start + len(rows)] for values in measured.values()]
            columns = [coords[:, 0].copy(), coords[:, 1].copy(), features, *rest]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _write_pt(path: Path, journal: Journal, keep: NDArray[np.bool_], grid: TileGrid, attributes: Attributes) -> None:
    """CLAM loads a tensor and nothing else: the rest lies in the same zip file, where PyTorch does not look."""
    import torch

    features = np.empty((int(keep.sum()), attributes["embed_dim"]), dtype=np.float32)
    for start, _, rows in kept_rows(journal, keep, grid):
        features[start : start + len(rows)] = rows
    with path.open("wb") as opened:  # by its name PyTorch would call the records, too
        torch.save(torch.from_numpy(features), opened)
    with zipfile.ZipFile(path, "a") as file:
        root = file.namelist()[0].partition("/")[0]
        file.writestr(f"{root}/{ABOUT}", json.dumps(attributes))
        places = {"coords": grid.coords[keep], "unreadable_coords": grid.coords[~keep], **of_skipped(keep, grid)}
        for name, values in places.items():
            with file.open(f"{root}/{name}.npy", "w") as array:
                np.save(array, values)


def _sync(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("r+b") as written:
                os.fsync(written.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
