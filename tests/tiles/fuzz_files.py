"""Damages files that a user may hand over in many ways, opens each in a process of its own, and counts what came of it.

    python tests/tiles/fuzz_files.py --count 1000 --seed 0 [--kinds parquet config.json] [--keep FOLDER]

Every file must be read, or refused with an exit code that says why (2, 4, 5): no traceback, no crash, at most 20 s of
the processor and 1 GiB. Exit 1 where one was not; `--keep` then holds those files. POSIX only.
"""

import csv
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from atlas_edge.errors import AtlasError
from atlas_edge.models.load import load_model
from atlas_edge.tiles import open_tiles
from fuzzing import Kind, Limits, fuzz

_LIMITS = Limits(mib=1024, address_mib=6 * 1024, results=("0", "2", "4", "5"))
_SIDE_PX = 32


def _use_tiles(path: Path) -> int:
    """As an export does: splits, fingerprint, and each tile; one that is refused is told and the next one tried."""
    code = 0
    source = open_tiles(path)
    source.splits()
    source.fingerprint()
    for record in source.records():
        try:
            source.read(record)
        except AtlasError as error:
            print(error)
            code = error.exit_code
    source.close()
    return code


def _use_model(folder: Path) -> int:
    load_model(str(folder))
    return 0


def _pixels(seed: int) -> Any:
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(smooth).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC))


def _write_image(form: str, **options: Any) -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(_pixels(0)).save(folder / f"tile.{form}", **options)


def _write_pack(folder: Path) -> None:
    rows = []
    with zipfile.ZipFile(folder / "shard.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            Image.fromarray(_pixels(number)).save(folder / "tile.bmp")
            archive.write(folder / "tile.bmp", f"{number}.bmp")
            rows.append({"file": f"{number}.bmp", "shard": "shard.zip", "label": "ab"[number % 2], "mpp": "0.5"})
            rows[-1] |= {"split": ("train", "test")[number // 2], "group": f"slide-{number}", "sha256": ""}
    (folder / "tile.bmp").unlink()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    images = []
    for number in range(8):
        Image.fromarray(_pixels(number)).save(folder / "tile.png")
        images.append({"bytes": (folder / "tile.png").read_bytes(), "path": None})
    (folder / "tile.png").unlink()
    columns = {"image": images, "slide_id": [f"slide-{n // 2}" for n in range(8)], "mpp": [0.5] * 8}
    parquet.write_table(pyarrow.table(columns), folder / "train.parquet", row_group_size=3)


def _write_slide_h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "slide.h5", "w") as file:
        for number in range(4):
            file.create_dataset(f"tile_{number}", data=_pixels(number), compression="gzip" if number % 2 else None)


def _write_patches_h5(folder: Path) -> None:
    import h5py

    stem = "camelyonpatch_level_2_split_train"
    with h5py.File(folder / f"{stem}_x.h5", "w") as file:
        file.create_dataset(
            "x", data=np.stack([_pixels(n) for n in range(4)]), chunks=(1, _SIDE_PX, _SIDE_PX, 3), compression="gzip"
        )
    with h5py.File(folder / f"{stem}_y.h5", "w") as file:
        file["y"] = np.array([0, 1, 1, 0], dtype=np.uint8).reshape(4, 1, 1, 1)


def _write_model(folder: Path) -> None:
    import timm
    from safetensors.torch import save_file

    arguments = {"img_size": _SIDE_PX, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    save_file(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).state_dict(), folder / "model.safetensors"
    )
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": 32,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, _SIDE_PX, _SIDE_PX],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "license": "cc0-1.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))


_PATCHES = "camelyonpatch_level_2_split_train"
KINDS = {
    "png": Kind(_write_image("png"), "tile.png", _use_tiles),
    "jpeg": Kind(_write_image("jpeg"), "tile.jpeg", _use_tiles),
    "tiff": Kind(_write_image("tiff", compression="tiff_lzw"), "tile.tiff", _use_tiles),
    "bmp": Kind(_write_image("bmp"), "tile.bmp", _use_tiles),
    "webp": Kind(_write_image("webp"), "tile.webp", _use_tiles),
    "manifest.csv": Kind(_write_pack, "manifest.csv", _use_tiles),
    "pack zip": Kind(_write_pack, "shard.zip", _use_tiles),
    "parquet": Kind(_write_parquet, "train.parquet", _use_tiles, ("pyarrow.parquet", "pyarrow.compute")),
    "hdf5 slide": Kind(_write_slide_h5, "slide.h5", _use_tiles, ("h5py",)),
    "hdf5 patches": Kind(_write_patches_h5, f"{_PATCHES}_x.h5", _use_tiles, ("h5py",)),
    "hdf5 labels": Kind(_write_patches_h5, f"{_PATCHES}_y.h5", _use_tiles, ("h5py",)),
    "config.json": Kind(_write_model, "config.json", _use_model, ("timm",)),
    "model.safetensors": Kind(_write_model, "model.safetensors", _use_model, ("timm",)),
}

if __name__ == "__main__":
    sys.exit(fuzz(__doc__, KINDS, _LIMITS))
