"""HDF5 files are looked at before they are read: what is no tile set costs no memory and says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.errors import InputError
from atlas_edge.tiles import open_tiles

h5py = pytest.importorskip("h5py")

TILE = np.full((8, 8, 3), 200, dtype=np.uint8)


def _read_first(path: Path) -> None:
    source = open_tiles(path)
    source.read(next(source.records()))
    source.close()


def _unwritten(shape: tuple[int, ...], **options: Any) -> Callable[[Any], None]:
    """A dataset that takes some hundred bytes on disk."""
    return lambda file: file.create_dataset("x", shape, dtype="u1", **options)


def _group(file: Any) -> None:
    file.create_group("x").create_dataset("y", data=TILE)


def _put(value: Any) -> Callable[[Any], None]:
    def write(file: Any) -> None:
        file["x"] = value

    return write


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((8, 8, 3), dtype="u1")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", shape=(8, 8, 3))
    file.create_virtual_dataset("x", layout)


def _external(file: Any) -> None:
    file.create_dataset("x", (8, 8, 3), dtype="u1", external=[("/etc/passwd", 0, 192)])


def _link(file: Any) -> None:
    other = Path(file.filename).with_name("elsewhere.dat")
    with h5py.File(other, "w") as there:
        there["x"] = TILE
    file["x"] = h5py.ExternalLink(other.name, "x")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_unwritten((20_000, 20_000, 3), chunks=(100, 100, 3)), "20000 x 20000 px, expected at most"),
        (_unwritten((10_000, 10_000, 3), chunks=(100, 100, 3), maxshape=(None, None, 3)), "10000 x 10000 px"),
        (
            _unwritten((8, 8, 3), chunks=(20_000, 20_000, 3), maxshape=(None, None, 3), compression="gzip"),
            r"in chunks of \(20000, 20000, 3\)",
        ),
        (_group, "holds a group 'x', expected a dataset"),
        (_put(TILE.astype(np.float32)), r"'x' as float32 \(8, 8, 3\), expected uint8 \(height, width, 3\)"),
        (_put(TILE[..., 0]), r"'x' as uint8 \(8, 8\)"),
        (_put("text"), "'x' as object"),
        (_put(h5py.Empty("u1")), r"'x' as uint8 \(\)"),
        (_virtual, "keeps 'x' in another file"),
        (_external, "keeps 'x' in another file"),
        (_link, "keeps 'x' in another file"),
        (lambda file: file.create_dataset(b"K\xf6ln", data=TILE), "expected names in UTF-8"),
        (lambda file: None, "holds no tiles"),
    ],
)
def test_what_is_no_tile_is_refused_unread(tmp_path: Path, write: Callable[[Any], None], message: str) -> None:
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        write(file)
    with pytest.raises(InputError, match=message):
        _read_first(tmp_path / "slide.h5")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_unwritten((10**12, 96, 96, 3), chunks=(1, 96, 96, 3)), "says 1,000,000,000,000 tiles and holds 0 bytes"),
        (_unwritten((4, 20_000, 20_000, 3), chunks=(1, 100, 100, 3)), "20000 x 20000 px"),
        (_group, "holds a group 'x'"),
        (_put(TILE), "'x' as uint8"),
        (lambda file: file.create_group("other"), "no dataset 'x', it has other"),
    ],
)
def test_patchcamelyon_is_looked_at_too(tmp_path: Path, write: Callable[[Any], None], message: str) -> None:
    path = tmp_path / "camelyonpatch_level_2_split_train_x.h5"
    with h5py.File(path, "w") as file:
        write(file)
    with pytest.raises(InputError, match=message):
        _read_first(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 2], dtype=np.uint8), "has a label 2, expected 0"),
        (np.array([0, -1]), "has a label -1, expected 0"),
        (np.array([b"0", b"1"]), r"holds labels as \|S1"),
        (np.zeros((2, 1000), dtype=np.uint8), "has 2000 labels for 2 tiles"),
        (np.uint8(1), "has 1 labels for 2 tiles"),
    ],
)
def test_labels_of_patchcamelyon_are_0_or_1(tmp_path: Path, labels: Any, message: str) -> None:
    stem = "camelyonpatch_level_2_split_train"
    with h5py.File(tmp_path / f"{stem}_x.h5", "w") as file:
        file["x"] = np.stack([TILE, TILE])
    with h5py.File(tmp_path / f"{stem}_y.h5", "w") as file:
        file["y"] = labels
    with pytest.raises(InputError, match=message):
        list(open_tiles(tmp_path).records())


def test_a_packed_tile_is_read(tmp_path: Path) -> None:
    """Glass packs well: what claims no more than deflate can do is believed."""
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file.create_dataset("x", data=np.stack([TILE] * 64), chunks=(64, 8, 8, 3), compression="gzip")
    source = open_tiles(tmp_path)
    assert (source.read(list(source.records())[-1]) == TILE).all()
