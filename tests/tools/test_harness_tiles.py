"""Tiles in the form of benchmarks' own data: each class, split, place and scan is where their code looks for it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.cli import run_app
from atlas_edge.tiles import open_tiles
from harness_tiles import EVA_FOLDERS, app
from simulated_scans import app as scans

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def made(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harnesses")
    assert run_app(scans, [f"{tiles}@test", "--count", "4", "--out", str(folder / "scans")]) == 0
    words = [str(tiles), str(folder / "scans"), "--out", str(folder / "data")]
    assert run_app(app, [*words, "--train", "6", "--val", "2", "--test", "4"]) == 0
    return folder


def test_eva_and_thunder_find_the_same_tiles_of_every_class(made: Path) -> None:
    base = made / "data/thunder/datasets"
    splits = json.loads((base / "data_splits/crc.json").read_text())
    assert {name: len(held["images"]) for name, held in splits.items()} == {"train": 6, "val": 2, "test": 4}
    assert not set(splits["train"]["images"]) & set(splits["val"]["images"])
    for split, folder in EVA_FOLDERS.items():
        files = sorted((made / "data/eva" / folder).rglob("*.tif"))
        assert [path.parent.name for path in files].count("ADI") == splits[split]["labels"].count(0) > 0
        by_number = {path.stem: path for path in files}
        assert len(list((made / "data/eva" / folder).iterdir())) == 9
        for image in splits[split]["images"]:
            twin = by_number[Path(image).stem]
            np.testing.assert_array_equal(np.asarray(Image.open(base / "crc" / image)), np.asarray(Image.open(twin)))


def test_pathorob_finds_what_it_lists(made: Path) -> None:
    root = made / "data/pathorob"
    with (root / "data/metadata/camelyon.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    with (root / "bifold-pathomics/PathoROB-camelyon/metadata.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert len(listed) == 32 and len({row["medical_center"] for row in listed}) == 4
    for row, image in zip(listed, images, strict=True):
        assert image == {"file_name": f"{row['patch_id']}.png", **row} and not row["patch_id"].isdigit()
        assert (root / "bifold-pathomics/PathoROB-camelyon" / image["file_name"]).is_file()


def test_plism_finds_each_place_on_every_scan(made: Path) -> None:
    files = sorted((made / "data/plism").glob("*_to_GMH_S60.tif.h5"))
    assert len(files) == 8 and len({path.name.split("_")[1] for path in files}) == 4
    source = open_tiles(str(made / "scans"))
    pixels = [source.read(record) for record in source.records()]
    for path in files:
        with h5py.File(path) as file:
            assert sorted(file) == [f"tile_0_{place}_0" for place in range(4)]
            assert all(any(np.array_equal(file[name][:], tile) for tile in pixels) for name in file)


def test_more_classes_than_eva_has_are_refused(tmp_path: Path) -> None:
    from atlas_edge.errors import InputError
    from harness_tiles import _write_eva

    with pytest.raises(InputError, match="10 classes, expected at most 9"):
        _write_eva(tmp_path, {}, [str(number) for number in range(10)])
