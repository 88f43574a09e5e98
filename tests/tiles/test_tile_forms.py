"""Every form of tile set gives the same tiles, and says what is wrong with a bad one."""

import csv
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.tiles import batches, open_tiles

SIDE = 16
COUNT = 12


def pixels(index: int) -> NDArray[np.uint8]:
    return np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


def label(index: int) -> str:
    return "ab"[index % 2]


def split(index: int) -> str:
    return "train" if index < 8 else "test"


def write_class_folders(root: Path) -> Path:
    for index in range(COUNT):
        folder = root / split(index) / label(index)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}.png").write_bytes(png(index))
    return root


def write_flat(root: Path) -> Path:
    for index in range(COUNT):
        (root / split(index)).mkdir(parents=True, exist_ok=True)
        (root / split(index) / f"{index:02d}.png").write_bytes(png(index))
    return root


def write_pack(root: Path, **changes: Any) -> Path:
    root.mkdir(parents=True)
    rows = []
    for shard in range(2):
        with zipfile.ZipFile(root / f"s-{shard}.zip", "w") as archive:
            for index in range(shard, COUNT, 2):
                archive.writestr(f"t/{index:02d}.png", png(index))
                rows.append(
                    {
                        "file": f"t/{index:02d}.png",
                        "shard": f"s-{shard}.zip",
                        "label": label(index),
                        "split": split(index),
                        "group": f"slide-{index // 4}",
                        "mpp": "0.5",
                        "sha256": hashlib.sha256(png(index)).hexdigest(),
                    }
                )
    rows[0].update(changes)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def write_parquet(root: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir(parents=True)
    for name in ("train", "test"):
        chosen = [index for index in range(COUNT) if split(index) == name]
        table = pyarrow.table(
            {
                "image": [{"bytes": png(index), "path": None} for index in chosen],
                "slide_id": [f"slide-{index // 4}" for index in chosen],
                "patch_id": chosen,
                "biological_class": [label(index) for index in chosen],
                "medical_center": ["RUMC"] * len(chosen),
            }
        )
        parquet.write_table(table, root / f"{name}-00000-of-00001.parquet", row_group_size=3)
    return root


def write_pcam(root: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    root.mkdir(parents=True)
    for name in ("train", "test"):
        chosen = [index for index in range(COUNT) if split(index) == name]
        with h5py.File(root / f"camelyonpatch_level_2_split_{name}_x.h5", "w") as file:
            file["x"] = np.stack([pixels(index) for index in chosen])
        with h5py.File(root / f"camelyonpatch_level_2_split_{name}_y.h5", "w") as file:
            file["y"] = np.array([index % 2 for index in chosen], dtype=np.uint8).reshape(-1, 1, 1, 1)
    return root


def write_plism(root: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    root.mkdir(parents=True)
    for number, slide in enumerate(("GIVH_S60_to_GMH_S60", "MY_AT2_to_GMH_S60")):
        with h5py.File(root / f"{slide}.tif.h5", "w") as file:
            for index in range(6):
                file[f"tile_{index:03d}"] = pixels(6 * number + index)
    return root


FORMS = {
    "class folders": write_class_folders,
    "flat folder": write_flat,
    "pack": write_pack,
    "parquet": write_parquet,
    "hdf5": write_pcam,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [0, 3])
def test_reads_every_tile_in_a_fixed_order(tmp_path: Path, form: str, threads: int) -> None:
    source = open_tiles(FORMS[form](tmp_path / "set"))
    assert source.kind == form
    assert not source.synthetic
    records = list(source.records())
    assert len(records) == len(source) == COUNT
    assert len({record.id for record in records}) == COUNT
    assert records == list(source.records())
    read = [tile for batch in batches(source, size=5, threads=threads) for tile in batch.pixels]
    assert {tile.tobytes() for tile in read} == {pixels(index).tobytes() for index in range(COUNT)}
    for record, tile in zip(records, read, strict=True):
        assert np.array_equal(source.read(record), tile)
    for record, tile in reversed(list(zip(records, read, strict=True))):
        assert np.array_equal(source.read(record), tile)
    source.close()
    assert source.fingerprint() == open_tiles(tmp_path / "set").fingerprint()


def write_pack_without_hashes(root: Path) -> Path:
    write_pack(root)
    manifest = root / "manifest.csv"
    manifest.write_text(re.sub(r"[0-9a-f]{64}", "", manifest.read_text()))
    return root


@pytest.mark.parametrize("write", [*FORMS.values(), write_pack_without_hashes])
def test_other_pixels_under_the_same_names_have_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    sets = [open_tiles(write(tmp_path / "a" / "set"))]
    monkeypatch.setattr(sys.modules[__name__], "SIDE", SIDE - 4)
    sets.append(open_tiles(write(tmp_path / "b" / "set")))
    assert [record.id for record in sets[0].records()] == [record.id for record in sets[1].records()]
    assert sets[0].fingerprint() != sets[1].fingerprint()


@pytest.mark.parametrize("form", FORMS)
def test_narrows_to_a_split(tmp_path: Path, form: str) -> None:
    root = FORMS[form](tmp_path / "set")
    train, test = open_tiles(f"{root}@train"), open_tiles(root, role="evaluation")
    assert (train.split, test.split) == ("train", "test")
    assert (len(train), len(test)) == (8, 4)
    assert {record.split for record in test.records()} == {"test"}
    assert open_tiles(root, role="calibration").fingerprint() == train.fingerprint() != test.fingerprint()
    with pytest.raises(UsageError, match=r"no split 'huge', it has test, train"):
        open_tiles(f"{root}@huge")


@pytest.mark.parametrize("form", ["class folders", "pack", "parquet"])
def test_knows_labels(tmp_path: Path, form: str) -> None:
    source = open_tiles(FORMS[form](tmp_path / "set"))
    by_content = {source.read(record).tobytes(): record for record in source.records()}
    for index in range(COUNT):
        record = by_content[pixels(index).tobytes()]
        assert record.label == label(index)
        assert record.group == (None if form == "class folders" else f"slide-{index // 4}")


def test_knows_plism_names(tmp_path: Path) -> None:
    source = open_tiles(write_plism(tmp_path / "plism"))
    first, *_, last = source.records()
    assert (first.stain, first.scanner, first.position) == ("GIVH", "S60", "tile_000")
    assert (last.stain, last.scanner, last.position) == ("MY", "AT2", "tile_005")
    assert np.array_equal(source.read(last), pixels(11))
    assert not source.splits()


def test_pcam_labels_must_fit(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    root = write_pcam(tmp_path / "pcam")
    with h5py.File(root / "camelyonpatch_level_2_split_train_y.h5", "w") as file:
        file["y"] = np.zeros((3, 1, 1, 1), dtype=np.uint8)
    with pytest.raises(InputError, match="3 labels for 8 tiles"):
        list(open_tiles(root).records())


def test_reads_a_licence(tmp_path: Path) -> None:
    root = write_pack(tmp_path / "set")
    assert open_tiles(root).licence is None
    (root / "README.md").write_text("# tiles\n\nLicence: CC0 1.0\n")
    assert open_tiles(root).licence == "CC0 1.0"


@pytest.mark.parametrize("form", ["class folders", "flat folder"])
def test_names_a_truncated_file(tmp_path: Path, form: str) -> None:
    root = FORMS[form](tmp_path / "set")
    victim = sorted(root.rglob("*.png"))[3]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(InputError, match=victim.name):
        list(batches(open_tiles(root), size=4, threads=2))


def test_names_a_changed_tile_of_a_pack(tmp_path: Path) -> None:
    source = open_tiles(write_pack(tmp_path / "set", sha256="0" * 64))
    with pytest.raises(ChecksumError, match=r"t/00\.png of s-0\.zip differs"):
        source.read(next(source.records()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../secret.png"}, "leaves its tile set"),
        ({"file": "/etc/passwd"}, "leaves its tile set"),
        ({"file": "C:\\secret.png"}, "leaves its tile set"),
        ({"shard": "../other.zip"}, "leaves its tile set"),
        ({"file": "t/none.png"}, r"t/none\.png is not in s-0\.zip"),
        ({"shard": "none.zip"}, r"t/00\.png of none\.zip cannot be read"),
        ({"mpp": "twenty"}, "mpp 'twenty'"),
        ({"mpp": "nan"}, "mpp 'nan'"),
        ({"file": ""}, "leaves its tile set"),
    ],
)
def test_refuses_a_bad_row(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    source = open_tiles(write_pack(tmp_path / "set", **changes))
    with pytest.raises(InputError, match=message):
        source.read(next(source.records()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'file'"),
        (b"name,shard\n", "no column 'file'"),
        (b"file,shard\na.png\n", "not as many fields"),
        (b"file,shard\na.png,b.zip,c\n", "not as many fields"),
        (b"file,shard\n\xff\xfe.png,b.zip\n", "cannot be read"),
        (b'file,shard\n"a.png,b.zip\n', "cannot be read after line"),
    ],
)
def test_refuses_a_bad_manifest(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(open_tiles(tmp_path).records())


def test_refuses_a_truncated_shard(tmp_path: Path) -> None:
    root = write_pack(tmp_path / "set")
    (root / "s-0.zip").write_bytes((root / "s-0.zip").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"s-0\.zip cannot be read"):
        list(batches(open_tiles(root), size=4))


def test_refuses_a_member_that_unpacks_to_too_much(tmp_path: Path) -> None:
    root = write_pack(tmp_path / "set", file="bomb.png", sha256="")
    with zipfile.ZipFile(root / "s-0.zip", "a", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(65 * 2**20))
    source = open_tiles(root)
    with pytest.raises(InputError, match="unpacks to"):
        source.read(next(source.records()))


@pytest.mark.parametrize("name", ["broken.parquet", "broken.h5"])
def test_refuses_broken_containers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(InputError, match=name):
        list(open_tiles(tmp_path / name).records())


def test_says_what_it_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_tiles(tmp_path / "none")
    with pytest.raises(InputError, match="does not exist"):
        open_tiles(f"{tmp_path / 'none'}@train")
    with pytest.raises(InputError, match="holds no tiles"):
        open_tiles(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="is no tile set"):
        open_tiles(tmp_path / "notes.txt")


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    source = open_tiles(write_class_folders(tmp_path / "tiles@train"))
    assert source.split is None
    assert len(source) == COUNT


def test_refuses_tiles_of_different_sizes(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png is 9 x 8 px, the tiles before it 8 x 8"):
        list(batches(open_tiles(tmp_path), size=2))


def test_threads_stop_with_the_reader(tmp_path: Path) -> None:
    stream = batches(open_tiles(write_flat(tmp_path / "set")), size=1, threads=2)
    next(stream)
    stream.close()
    import threading

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.errors import RuntimeMissing

    root = write_parquet(tmp_path / "set")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"atlas-edge\[tiles\]"):
        open_tiles(root)
