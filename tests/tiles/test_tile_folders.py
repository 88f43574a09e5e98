"""Folders of tiles: what is a split, a class or neither, and names that are not UTF-8."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.tiles import batches, open_tiles, provenance, select_records
from atlas_edge.tiles.overlap import check_disjoint, halves


def _tile(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), len(name), dtype=np.uint8)).save(path, "PNG")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/a.png", "test/b.png", "docs/c.png"), "holds test, train, named as splits, beside images in docs"),
        (("train/x/a.png", "test/x/b.png", "more/x/c.png"), "beside images in more"),
        (("test/a.png", "tumour/b.png"), "holds test, named as splits, beside images in tumour"),
        (("val/a.png", "validation/b.png"), "holds val and validation, which are both the split val"),
        (("Train/a.png", "training/b.png"), "holds Train and training, which are both the split train"),
        (("preview.png", "tumour/a.png", "stroma/b.png"), "holds images beside a folder of images, stroma"),
    ],
)
def test_folders_of_two_meanings_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        _tile(tmp_path, name)
    with pytest.raises(InputError, match=message):
        open_tiles(tmp_path)


@pytest.mark.parametrize("form", ["{split}/{name}", "{split}/tumour/{name}"])
def test_folders_without_images_are_no_classes(tmp_path: Path, form: str) -> None:
    for split in ("train", "test"):
        _tile(tmp_path, form.format(split=split, name=f"{split}.png"))
    (tmp_path / "docs" / "more").mkdir(parents=True)
    (tmp_path / "docs" / "README.md").write_text("about the tiles")
    assert open_tiles(tmp_path).splits() == {"train", "test"}
    assert [record.split for record in open_tiles(f"{tmp_path}@test").records()] == ["test"]


@pytest.mark.skipif(sys.platform == "win32", reason="names there are UTF-16")
@pytest.mark.parametrize("folder", [b".", b"K\xf6ln", b"train"])
def test_names_that_are_not_utf8(tmp_path: Path, folder: bytes) -> None:
    """An old share has Latin-1 names: the tiles are read, sampled, parted and written to reports all the same."""
    root = tmp_path / os.fsdecode(b"K\xf6ln")
    for number in range(4):
        _tile(root, os.fsdecode(folder + b"/" + b"\xe4" * (number + 1) + b".png"))
    source = open_tiles(root)
    records = list(source.records())
    assert source.name == "K\\xf6ln"
    assert [record.id.rpartition("/")[2] for record in records] == ["\\xe4" * (n + 1) + ".png" for n in range(4)]
    for text in (source.name, *(record.id for record in records), *(str(record.label) for record in records)):
        text.encode()
    assert sum(len(batch.records) for batch in batches(source, select_records(source, 3), size=2)) == 3
    assert provenance(source, records).tiles == 4
    assert len(provenance(source).fingerprint) == 64
    first, second = halves(records)
    check_disjoint((source, first), (source, second))
    with pytest.raises(InputError, match="4 tiles"):
        check_disjoint((source, records), (open_tiles(root), records))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_pipe_is_no_tile(tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    os.mkfifo(tmp_path / "a.png")
    source = open_tiles(tmp_path)
    with pytest.raises(InputError, match=r"tile a\.png is no file"):
        source.read(next(source.records()))
