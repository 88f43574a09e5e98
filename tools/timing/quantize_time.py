"""Time quantization alone, this version against another, for OpenVINO and ONNX: `python tools/timing/quantize_time.py`.

Both versions take turns in processes of their own, on the same tiles:

    git worktree add ../before 631b16a
    python tools/timing/quantize_time.py MODEL TILES --against ../before
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import AtlasError, InputError
from atlas_edge.models.load import load_model
from atlas_edge.quantize.recipe import openvino_recipe
from atlas_edge.quantize.tiles.choose import choose_calibration
from atlas_edge.system.hardware import cpu, usable_cores
from atlas_edge.tiles import open_tiles

_BATCH = 8
_HERE = Path(__file__).resolve()

HELP = """Time how long quantizing takes, this version and another by turns, on this machine.

Example:

    python tools/timing/quantize_time.py ../shared/models/dinov2-vits14 ../shared/data/dev_crc5 --against ../before
"""

app = make_app("quantize_time", HELP)


@app.default
def quantize_time(
    model: str,
    tiles: Path,
    /,
    *,
    against: Path,
    count: int = 256,
    rounds: int = 3,
    targets: str = "openvino,onnx",
    as_json: bool = False,
) -> None:
    """Print the table.

    Args:
        model: Folder or name of the encoder.
        tiles: Tile set that calibrates.
        against: Checkout of another version.
        count: Calibration tiles, augmented ones among them.
        rounds: How often each version takes its turn.
        targets: Of `openvino` and `onnx`.
        as_json: Print the seconds of every turn instead, and those of the processor.
    """
    trees = {"this": _HERE.parents[2], "other": against.resolve()}
    if not (trees["other"] / "src" / "atlas_edge").is_dir():
        raise InputError(
            f"{against} holds no src/atlas_edge", hint="give a checkout: git worktree add ../before COMMIT"
        )
    spec = load_model(model).spec
    chosen = round(count * (1 - openvino_recipe().augmented_share))
    pixels = choose_calibration(open_tiles(tiles, role="calibration"), limit=chosen, tile_px=spec.tile_px).pixels
    seconds: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "tiles.npy", pixels)
        for turn in range(rounds):
            for target in targets.split(","):
                # Who goes first alternates, too.
                for name, tree in list(trees.items())[:: 1 - 2 * (turn % 2)]:
                    taken = _in_child(tree, target, model, Path(folder) / "tiles.npy", count)
                    seconds.setdefault(target, {}).setdefault(name, []).append(taken)
    print(json.dumps(seconds) if as_json else _table(seconds, model, count))


def _in_child(tree: Path, target: str, model: str, tiles: Path, count: int) -> tuple[float, float]:
    """Wall and processor seconds."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    command = [sys.executable, str(_HERE), "--child", target, model, str(tiles), str(count)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise AtlasError(f"{tree.name} cannot quantize {model} for {target}: {result.stderr.strip()[-500:]}")
    wall, processor = json.loads(result.stdout.splitlines()[-1])
    return wall, processor


def _child(target: str, model: str, tiles: str, count: str) -> None:
    """Quantize once, by names that versions share, and print the seconds."""
    loaded, pixels = load_model(model), np.load(tiles)
    batches = [pixels[at : at + _BATCH] for at in range(0, len(pixels), _BATCH)]
    quantize = {"openvino": _openvino, "onnx": _onnx}[target]
    print(json.dumps(quantize(loaded.module, batches, int(count))))


def _openvino(module: Any, batches: list[NDArray[np.uint8]], count: int) -> tuple[float, float]:
    from atlas_edge.models.folding.vit import fold_vit
    from atlas_edge.quantize.openvino.grids import choose_grids
    from atlas_edge.quantize.tiles.augmentation import with_augmented

    recipe = openvino_recipe().model_copy(update={"calibration_tiles": count})
    batches = with_augmented(batches, recipe.augmented_share)
    started = time.perf_counter(), time.process_time()
    folded = fold_vit(module)
    assert folded is not None
    choose_grids(folded, batches, recipe)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def _onnx(module: Any, batches: list[NDArray[np.uint8]], count: int) -> tuple[float, float]:
    from atlas_edge.quantize.onnx.fakequant import fake_quantize, quiet_modelopt
    from atlas_edge.quantize.recipe import onnx_recipe

    with quiet_modelopt():
        import modelopt.torch.quantization  # noqa: F401

    recipe = onnx_recipe().model_copy(update={"calibration_tiles": count})
    started = time.perf_counter(), time.process_time()
    fake_quantize(module, batches, recipe)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def _table(seconds: dict[str, dict[str, list[tuple[float, float]]]], model: str, count: int) -> str:
    lines = [
        "| target | version | seconds | of the processor | shorter by (95 %) |",
        "|---|---|---:|---:|---:|",
    ]
    for target, versions in seconds.items():
        for name in ("other", "this"):
            wall, processor = np.array(versions[name]).T
            ratio = "" if name == "other" else _ratio(np.array(versions["other"])[:, 0] / wall)
            lines.append(
                f"| {target} | {name} | {np.median(wall):.1f} ({wall.min():.1f} to {wall.max():.1f}) | "
                f"{np.median(processor):.1f} ({processor.min():.1f} to {processor.max():.1f}) | {ratio} |"
            )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    rounds = len(next(iter(seconds.values()))["this"])
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    lines += [
        "",
        f"{Path(model).name}, {count} tiles, {rounds} turns each: median, least and most. {cpu().name}, "
        f"{usable_cores()} cores, OMP_NUM_THREADS {threads}; load at the end {load}.",
    ]
    return "\n".join(lines)


def _ratio(ratios: NDArray[np.float64]) -> str:
    found: Interval = geometric_mean_interval(ratios)
    return f"{found.estimate:.2f}x [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        main()
