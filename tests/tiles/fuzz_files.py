"""Damages files that a user may hand over in many ways, opens each in a process of its own, and counts what came of it.

    python tests/tiles/fuzz_files.py --count 1000 --seed 0 [--kinds parquet config.json] [--keep FOLDER]

Every file must be read, or refused with an exit code that says why (2, 4, 5): no traceback, no crash, at most 20 s and
1 GiB. Exit 1 where one was not; `--keep` then holds those files. POSIX only.
"""

import argparse
import csv
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atlas_edge.errors import AtlasError
from atlas_edge.models import load_model
from atlas_edge.tiles import open_tiles

MOST_SECONDS = 20
MOST_MIB = 1024
ALLOWED = ("0", "2", "4", "5")

_LIMIT_MIB = 6 * 1024  # no file may take the machine's memory while it is tried
_SIDE_PX = 32
_ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 2**31, 2**63, 1e308, float("nan"), 0.3, "", "x", "0.5", "x" * 10_000, "../../etc/passwd",
    "[/bold]", "\u0000", [], {}, [1], [0.5, "a"], [[1]], {"a": 1},
)  # fmt: skip
_ODD_NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of one kind: how to write whole ones into a folder, which of them is damaged, and how it is opened."""

    write: Callable[[Path], None]
    damaged: str
    use: Callable[[Path], int]
    imports: tuple[str, ...] = ()

    def write_whole(self, folder: Path) -> int:
        """Write files that can be opened."""
        folder.mkdir(parents=True)
        self.write(folder)
        return self.use(folder)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code, `traceback`, `hang` or `signal N`, and what it took."""

    result: str
    seconds: float
    mib: float
    said: str

    @property
    def good(self) -> bool:
        return self.result in ALLOWED and self.seconds <= MOST_SECONDS and self.mib <= MOST_MIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for module in {module for name in options.kinds for module in KINDS[name].imports}:
        importlib.import_module(module)  # once, not in every process
    with tempfile.TemporaryDirectory() as work:
        for name in options.kinds:
            whole = _in_child(KINDS[name].write_whole, Path(work, "whole", name))
            if whole.result != "0":
                sys.exit(f"{name} cannot be written whole: {whole.result} {whole.said}")
        for number in range(options.count):
            name = options.kinds[number % len(options.kinds)]
            kind, folder = KINDS[name], Path(work, "case")
            shutil.copytree(Path(work, "whole", name), folder)
            victim = folder / kind.damaged
            victim.write_bytes(
                damage(victim.read_bytes(), victim.suffix, np.random.default_rng([options.seed, number]))
            )
            outcome = _in_child(kind.use, folder)
            outcomes[name].append(outcome)
            if not outcome.good:
                print(f"{name} {number}: {outcome.result}, {outcome.seconds:.1f} s, {outcome.mib:.0f} MiB")
                print("    " + outcome.said.strip().replace("\n", "\n    ")[-2000:])
                if options.keep is not None:
                    shutil.copytree(folder, options.keep / f"{name}-{number}", dirs_exist_ok=True)
            shutil.rmtree(folder)
    _print_table(outcomes)
    return 0 if all(outcome.good for found in outcomes.values() for outcome in found) else 1


def damage(data: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """One way of many in which a file can be wrong; texts are also damaged in their meaning."""
    if suffix == ".json" and rng.random() < 0.7:
        return json.dumps(_odd_value_within(json.loads(data), rng)).encode()
    if suffix == ".csv" and rng.random() < 0.6:
        return _odd_cell_within(data, rng)
    out = bytearray(data)
    # Headers and footers say how large the rest is.
    near = min(len(out), 256)
    spot = int(rng.choice([rng.integers(len(out)), rng.integers(near), len(out) - 1 - rng.integers(near)]))
    span = int(2 ** rng.uniform(0, 10))
    match int(rng.integers(8)):
        case 0:
            for at in rng.integers(len(out), size=int(rng.integers(1, 9))):
                out[at] ^= 1 << int(rng.integers(8))
        case 1:
            out[spot] ^= 1 << int(rng.integers(8))
        case 2:
            out[spot : spot + 4] = int(rng.choice(_ODD_NUMBERS)).to_bytes(4, str(rng.choice(["little", "big"])))
        case 3:
            del out[spot:]
        case 4:
            del out[spot : spot + span]
        case 5:
            out[spot:spot] = out[spot : spot + span]
        case 6:
            out[spot:spot] = rng.bytes(span)
        case _:
            out[spot : spot + span] = bytes([int(rng.choice([0, 255, 127]))]) * len(out[spot : spot + span])
    return bytes(out)


def _odd_value_within(value: Any, rng: np.random.Generator) -> Any:
    """The same with one part of it odd, doubled or gone."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(list(value)))
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: _odd_value_within(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = int(rng.integers(len(value)))
        return [*value[:at], _odd_value_within(value[at], rng), *value[at + int(rng.integers(2)) :]]
    return _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]


def _odd_cell_within(data: bytes, rng: np.random.Generator) -> bytes:
    rows = [line.split(b",") for line in data.splitlines()]
    row = rows[int(rng.integers(len(rows)))]
    odd = _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]
    row[int(rng.integers(len(row)))] = str(odd).encode() if rng.random() < 0.8 else rng.bytes(6)
    return b"\r\n".join(b",".join(cells) for cells in rows)


def _in_child(use: Callable[[Path], int], folder: Path) -> Outcome:
    with tempfile.TemporaryFile() as said:
        begun = time.monotonic()
        process = os.fork()
        if process == 0:
            _become(use, folder, said.fileno())
        _, status, used = os.wait4(process, 0)
        seconds = time.monotonic() - begun
        said.seek(0)
        before, _, text = said.read().decode(errors="replace").partition("\n")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        result = "hang" if number == signal.SIGALRM else f"signal {number}"
    else:
        code = os.WEXITSTATUS(status)
        result = "traceback" if code == 1 else str(code)
    return Outcome(result, seconds, used.ru_maxrss / 1024 - float(before), text)


def _become(use: Callable[[Path], int], folder: Path, said: int) -> None:
    os.dup2(said, 1)
    os.dup2(said, 2)
    pages, resident = (int(found) for found in Path("/proc/self/statm").read_text().split()[:2])
    print(resident * resource.getpagesize() / 2**20, flush=True)
    signal.alarm(MOST_SECONDS)
    limit = pages * resource.getpagesize() + _LIMIT_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    code = 1
    try:
        code = use(folder)
    except AtlasError as error:
        print(error)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _print_table(outcomes: dict[str, list[Outcome]]) -> None:
    results = sorted({outcome.result for found in outcomes.values() for outcome in found})
    print("| kind | files |", " | ".join(results), "| longest, s | most, MiB |")
    print("|---|--:|" + "--:|" * (len(results) + 2))
    everything = [outcome for found in outcomes.values() for outcome in found]
    for name, found in [*outcomes.items(), ("all", everything)]:
        counts = Counter(outcome.result for outcome in found)
        cells = [str(counts[result]) for result in results]
        longest, most = max(one.seconds for one in found), max(one.mib for one in found)
        print(f"| {name} | {len(found)} | {' | '.join(cells)} | {longest:.1f} | {most:.0f} |")


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
    sys.exit(main())
