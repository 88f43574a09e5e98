"""Tiles at hand in the place of benchmarks' own data, each in the form that the benchmark's code reads.

    python tools/harness_tiles.py TILES SCANS --out data

`TILES` (with a split) become eva's and THUNDER's CRC, `SCANS` (of tools/simulated_scans.py, or any pack with centres,
scanners, stains and positions) PathoROB's Camelyon and PLISM. What the programs then print is of these tiles, and not
of those data: it says what a bundle does beside its full precision, and nothing of how good an encoder is.
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from atlas_edge.bench.accuracy.tileset import TileSet, pick_tiles
from atlas_edge.cli import make_app, require_module, run_app
from atlas_edge.errors import InputError
from atlas_edge.system.atomic import atomic_folder
from atlas_edge.tiles import open_tiles

# eva's CRC: names of its classes, of which ours take the first, and of its folders.
EVA_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
EVA_FOLDERS = {"train": "NCT-CRC-HE-100K", "test": "CRC-VAL-HE-7K"}
# PLISM's stains and scanners, under whose names ours go.
PLISM_STAINS = ("GMH", "GIVH", "KR", "LM")
PLISM_SCANNERS = ("S60", "S210", "GT450", "P", "AT2", "S360", "SQ")

app = make_app("harness_tiles", __doc__ or "")


@app.default
def harness_tiles(
    tiles: str, scans: str, /, *, out: Path, train: int = 400, val: int = 100, test: int = 200, overwrite: bool = False
) -> None:
    """Write `eva/`, `thunder/`, `pathorob/` and `plism/`.

    Args:
        tiles: Labelled tiles with the splits train and test, in at most nine classes.
        scans: Labelled tiles with slide, centre, scanner, stain and position.
        out: Folder to write.
        train: Tiles to fit on, balanced over the labels.
        val: Tiles of the same split, from which THUNDER chooses its hyperparameters.
        test: Tiles to judge on.
        overwrite: Replace such a folder.

    Raises:
        InputError: The tiles lack labels, splits, or columns.
    """
    require_module("h5py", extra="slides")
    fitted = pick_tiles(open_tiles(f"{tiles}@train"), limit=train + val)
    judged = pick_tiles(open_tiles(f"{tiles}@test"), limit=test)
    chosen = pick_tiles(open_tiles(scans), limit=None)
    with atomic_folder(out, marks=("thunder", "pathorob"), overwrite=overwrite) as folder:
        rows = list(range(len(fitted.records)))
        every = (train + val) // val
        splits = {
            "train": (fitted, [row for row in rows if row % every]),
            "val": (fitted, rows[::every]),
            "test": (judged, list(range(len(judged.records)))),
        }
        names = sorted(set(labels_of(fitted)) | set(labels_of(judged)))
        _write_eva(folder / "eva", splits, names)
        _write_thunder(folder / "thunder", splits, names)
        _write_pathorob(folder / "pathorob", chosen)
        _write_plism(folder / "plism", chosen)
    print(", ".join(f"{len(held)} {name}" for name, (_, held) in splits.items()), f"{len(chosen.records)} scans")


def labels_of(tiles: TileSet) -> Sequence[str]:
    """Its labels.

    Raises:
        InputError: It has none.
    """
    if tiles.labels is None:
        raise InputError("these tiles have no labels", hint="give class folders, or a label column")
    return tiles.labels


Splits = dict[str, tuple[TileSet, list[int]]]


def _write_eva(root: Path, splits: Splits, names: Sequence[str]) -> None:
    if len(names) > len(EVA_CLASSES):
        raise InputError(f"{len(names)} classes, expected at most {len(EVA_CLASSES)}", hint="choose other tiles")
    for split, folder in EVA_FOLDERS.items():
        for name in EVA_CLASSES:
            (root / folder / name).mkdir(parents=True)
        chosen, rows = splits[split]
        for row in rows:
            place = root / folder / EVA_CLASSES[names.index(labels_of(chosen)[row])]
            Image.fromarray(chosen.source.read(chosen.records[row])).save(place / f"{row:05d}.tif")


def _write_thunder(root: Path, splits: Splits, names: Sequence[str]) -> None:
    told = {}
    for split, (chosen, rows) in splits.items():
        (root / "datasets" / "crc" / split).mkdir(parents=True)
        images = [f"{split}/{row:05d}.png" for row in rows]
        for row, image in zip(rows, images, strict=True):
            Image.fromarray(chosen.source.read(chosen.records[row])).save(root / "datasets" / "crc" / image)
        told[split] = {"images": images, "labels": [names.index(labels_of(chosen)[row]) for row in rows]}
    (root / "datasets" / "data_splits").mkdir()
    (root / "datasets" / "data_splits" / "crc.json").write_text(json.dumps(told), encoding="utf-8")
    (root / "outputs").mkdir()


def _write_pathorob(root: Path, chosen: TileSet) -> None:
    """A folder of images that `datasets` takes for PathoROB's by its path, and the list of its tiles."""
    images = root / "bifold-pathomics" / "PathoROB-camelyon"
    images.mkdir(parents=True)
    (root / "data" / "metadata").mkdir(parents=True)
    columns = ("subset", "slide_id", "patch_id", "biological_class", "medical_center")
    rows = []
    for number, (record, label) in enumerate(zip(chosen.records, labels_of(chosen), strict=True)):
        name = f"tile-{number:05d}"  # a number alone would be read as one
        Image.fromarray(chosen.source.read(record)).save(images / f"{name}.png")
        rows.append(("all", record.group, name, label, record.center))
    for path, heading, lines in (
        (images / "metadata.csv", ("file_name", *columns), [(f"{row[2]}.png", *row) for row in rows]),
        (root / "data" / "metadata" / "camelyon.csv", columns, rows),
    ):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([heading, *lines])


def _write_plism(root: Path, chosen: TileSet) -> None:
    import h5py

    found = [[getattr(record, name) for record in chosen.records] for name in ("scanner", "stain", "position")]
    if any(None in names for names in found):
        raise InputError("a tile names no scanner, stain or position", hint="see docs/bench.md: a pack's columns")
    scanners, stains, places = (sorted(set(map(str, names))) for names in found)
    root.mkdir()
    for scanner, called in zip(scanners, PLISM_SCANNERS, strict=False):
        for stain, dyed in zip(stains, PLISM_STAINS, strict=False):
            with h5py.File(root / f"{dyed}_{called}_to_GMH_S60.tif.h5", "w") as file:
                for record in chosen.records:
                    if (record.scanner, record.stain) == (scanner, stain):
                        pixels = np.asarray(chosen.source.read(record))
                        file[f"tile_0_{places.index(str(record.position))}_0"] = pixels


if __name__ == "__main__":
    sys.exit(run_app(app))
