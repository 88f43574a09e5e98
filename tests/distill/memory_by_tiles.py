"""Show that training's memory does not grow with the number of tiles.

    python tests/distill/memory_by_tiles.py SCRATCH [TILES …]

Writes folders of 500 and 5,000 random tiles (or as many as named), caches a tiny teacher's CLS and patch features of
them, and trains a tiny student for one epoch on each, with the cache and with the running teacher, by the command
line. Prints JSON: the largest resident memory of each run, MB.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm import create_model

from atlas_edge.distill.training.student import Architecture, save_student

_BATCH = 20


def main(scratch: Path, counts: list[int]) -> None:
    """Run all of it."""
    teacher, student = (_model(scratch / name, width) for name, width in (("teacher", 128), ("student", 32)))
    result = {}
    for count in counts:
        tiles, cache = _tiles(scratch / f"tiles-{count}", count), scratch / f"features-{count}"
        _run("cache", teacher, tiles, "--out", cache, "--views", "1", "--tile-px", "32", "--grid", "4")
        stored = sum(path.stat().st_size for path in cache.iterdir()) / 1e6
        for kind, source in (("cache", cache), ("running teacher", teacher)):
            report = _run(
                source, "--tiles", tiles, "--student", student, "--out", scratch / f"{kind[:5]}-{count}",
                "--views", "1", "--batch", str(_BATCH), "--steps", str(count // _BATCH), "--overwrite",
            )  # fmt: skip
            result[f"{count} tiles, {kind}"] = {"peak_memory_mb": round(report["peak_memory_mb"], 1)}
        result[f"{count} tiles, cache"]["features_mb"] = round(stored, 1)
    print(json.dumps(result, indent=2))


def _model(folder: Path, width: int) -> Path:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": width // 32}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(width)
    model = create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    architecture = Architecture(name="vit_tiny_patch16_224", arguments=arguments, tile_px=32)
    save_student(folder, model.state_dict(), architecture, licence="cc0-1.0", half=False)
    return folder


def _tiles(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number:05d}.png")
    return folder


def _run(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-m", "atlas_edge.distill", *map(str, arguments), "--threads", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    report: dict[str, float] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(value) for value in sys.argv[2:]] or [500, 5_000])
