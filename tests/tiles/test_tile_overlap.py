"""Tiles that fit never judge: the same slide, file or picture is seen however it is named."""

import csv
import shutil
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.tiles import TileRecord, TileSource, open_tiles
from atlas_edge.tiles.overlap import check_disjoint, find_overlap, halves

Tiles = tuple[TileSource, Sequence[TileRecord]]


def _tiles(spec: str | Path) -> Tiles:
    source = open_tiles(spec)
    return source, list(source.records())


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _folder(root: Path, seed: int, *, tiles: int = 4) -> Path:
    for number in range(tiles):
        _picture(root / f"{number:04d}.png", seed + number)
    return root


def _pack(root: Path, seed: int, *, groups: bool = False) -> Path:
    """Two shards, one of each split, that both name their tiles `0.png` and `1.png`."""
    root.mkdir(parents=True)
    rows = []
    for shard, split in enumerate(("train", "test")):
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for number in range(2):
                _picture(root / "tile.png", seed + 2 * shard + number)
                archive.write(root / "tile.png", f"{number}.png")
                group = f"slide-{split}" if groups else ""
                rows.append({"file": f"{number}.png", "shard": f"{split}.zip", "split": split, "group": group})
    (root / "tile.png").unlink()
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def _refused(first: Tiles, second: Tiles, message: str) -> None:
    for pair in ((first, second), (second, first)):
        with pytest.raises(InputError, match=message):
            check_disjoint(*pair)


def test_a_shared_slide_is_refused(tmp_path: Path) -> None:
    source = open_tiles(_folder(tmp_path / "set", 0))

    def tiles(*groups: str) -> Tiles:
        return source, [TileRecord(id=f"{group}-{number}", group=group) for group in groups for number in range(2)]

    check_disjoint(tiles("a", "b"), tiles("c"))
    _refused(tiles("a", "b"), tiles("b", "c"), r"1 slides \(such as b\)")
    with pytest.raises(InputError, match=r"both the fitted tiles and the tested tiles[\s\S]*give --fit and --tiles"):
        check_disjoint(tiles("a"), tiles("a"), names=("fitted", "tested"), options=("--fit", "--tiles"))


def test_equal_names_in_two_sets_are_two_tiles(tmp_path: Path) -> None:
    check_disjoint(_tiles(_folder(tmp_path / "a", 0)), _tiles(_folder(tmp_path / "b", 100)))
    pack = _pack(tmp_path / "pack", 200)
    check_disjoint(_tiles(f"{pack}@train"), _tiles(f"{pack}@test"))
    assert len({record.id for record in open_tiles(pack).records()}) == 4


def test_another_spelling_is_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _folder(tmp_path / "set", 0)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for spelt in ("set", "./set/../set", tmp_path / "link"):
        _refused(_tiles(root), _tiles(spelt), r"4 tiles \(such as 0000\.png\)")


def test_a_split_and_its_whole_share_tiles(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _folder(tmp_path / "set" / split / "tumour", 10 * len(split))
    whole, train, test = (_tiles(f"{tmp_path / 'set'}{split}") for split in ("", "@train", "@test"))
    check_disjoint(train, test)
    _refused(whole, test, "4 tiles")
    # Below its splits the same set has other ids and labels.
    _refused(train, _tiles(tmp_path / "set" / "train"), "4 tiles")


def test_linked_tiles_are_the_same(tmp_path: Path) -> None:
    root = _folder(tmp_path / "set", 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "renamed.png").symlink_to(root / "0002.png")
    _refused(_tiles(root), _tiles(tmp_path / "other"), "1 tiles")


def test_slides_known_on_one_side_only(tmp_path: Path) -> None:
    """A manifest names the slides of files that a folder holds without them."""
    root = _folder(tmp_path / "set", 0)
    folder = _tiles(root)
    (root / "manifest.csv").write_text("file,shard,group\n" + "".join(f"{n:04d}.png,,case-1\n" for n in range(2)))
    _refused(_tiles(root), folder, r"2 tiles \(such as 0000\.png\)")


def test_copied_tiles_are_found_by_their_pixels(tmp_path: Path) -> None:
    copied = shutil.copytree(_pack(tmp_path / "pack", 0), tmp_path / "copy")
    _refused(_tiles(tmp_path / "pack"), _tiles(copied), "4 tiles")
    check_disjoint(_tiles(f"{tmp_path / 'pack'}@train"), _tiles(f"{copied}@test"))
    root = _folder(tmp_path / "set" / "test" / "tumour", 50)
    shutil.copytree(root, tmp_path / "elsewhere" / "tumour")
    _refused(_tiles(tmp_path / "set"), _tiles(tmp_path / "elsewhere"), r"4 tiles \(such as .*tumour/0000\.png\)")


def test_empty_glass_and_damaged_tiles_are_no_copies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (243, 243, 243)).save(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").write_bytes(b"no picture")
    check_disjoint(_tiles(tmp_path / "a"), _tiles(tmp_path / "b"))


def test_synthetic_sets_share_their_beginning() -> None:
    check_disjoint(_tiles("synthetic:64:0"), _tiles("synthetic:64:1"))
    check_disjoint(_tiles("synthetic:64:0@train"), _tiles("synthetic:512:0@test"))
    found = find_overlap(_tiles("synthetic:64:0"), _tiles("synthetic:512:0"))
    assert (len(found.slides), len(found.tiles)) == (4, 64)


def test_parquet_and_hdf5_know_their_rows(tmp_path: Path) -> None:
    pyarrow, h5py = pytest.importorskip("pyarrow"), pytest.importorskip("h5py")
    from pyarrow import parquet

    table = pyarrow.table({"image": [b""] * 4, "split": ["train", "train", "test", "test"]})
    parquet.write_table(table, tmp_path / "set.parquet", row_group_size=3)
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_train_x.h5", "w") as file:
        file["x"] = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    for path in sorted(tmp_path.iterdir()):
        twice = _tiles(path), _tiles(tmp_path / ".." / tmp_path.name / path.name)
        assert len(find_overlap(*twice).tiles) == 4
        source, records = twice[0]
        check_disjoint((source, records[:2]), (source, records[2:]))
    check_disjoint(_tiles(f"{tmp_path / 'set.parquet'}@train"), _tiles(f"{tmp_path / 'set.parquet'}@test"))
    _refused(_tiles(tmp_path / "set.parquet"), _tiles(f"{tmp_path / 'set.parquet'}@test"), "2 tiles")


@pytest.mark.parametrize("slides", [True, False])
def test_halves_share_no_slide_and_keep_the_classes(slides: bool) -> None:
    records = [
        TileRecord(id=f"{n:02d}", label="ab"[n // 20], group=f"s{n // 5}" if slides else None) for n in range(40)
    ]
    first, second = halves(records)
    assert {r.id for r in first} | {r.id for r in second} == {r.id for r in records}
    assert not {r.group or r.id for r in first} & {r.group or r.id for r in second}
    for half in (first, second):
        assert Counter(r.label for r in half) == {"a": 10, "b": 10}
    with pytest.raises(InputError, match="one slide"):
        halves([TileRecord(id=str(n), group="only") for n in range(5)])
