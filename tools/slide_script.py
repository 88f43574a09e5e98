"""Bundles on a slide against the script that anyone would write first: OpenSlide, Pillow, timm in eager PyTorch.

The comparison in docs/slides.md is made by it:

    python tools/slide_script.py SLIDE --model MODEL --bundle BUNDLE --tiles 128 --rounds 4
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from atlas_edge.bench.commands.slide import show
from atlas_edge.bench.options import SlideBenchOptions
from atlas_edge.bench.slides.end_to_end import bench_slide
from atlas_edge.cli import console, make_app, require_module, run_app
from atlas_edge.errors import UsageError
from atlas_edge.slides import TileGrid
from atlas_edge.system.hardware import usable_cores

BATCH = 32

app = make_app("slide_script", __doc__ or "")


@app.default
def compare(
    slide: Path,
    /,
    *,
    model: str,
    bundle: list[str],
    tile_mpp: float | None = None,
    tiles: int = 256,
    rounds: int = 4,
) -> None:
    """Time bundles and the script on a slide, taking turns in one run.

    Args:
        slide: Slide that OpenSlide reads.
        model: timm folder for the script, or the name of a timm architecture (random weights).
        bundle: Bundle folder; give it again for another one.
        tile_mpp: µm per pixel of tiles; the bundle's own when left out.
        tiles: Tiles a turn.
        rounds: Turns of everything.
    """
    options = SlideBenchOptions(tiles=tiles, rounds=rounds, tile_mpp=tile_mpp)
    show(bench_slide(slide, bundle, options, rival=partial(obvious_script, model)), console())


def obvious_script(model_folder: str, path: Path, grid: TileGrid) -> Callable[[], float]:
    """Prepare the obvious script on the tiles of a grid.

    `read_region` tile by tile, Pillow to RGB and to the tile's size, torchvision's ToTensor and Normalize, batches of
    32, `timm` in eager float32 under `inference_mode`, PyTorch on all cores.

    Args:
        model_folder: timm folder, or the name of a timm architecture (random weights).
        path: Slide that OpenSlide reads.
        grid: Tiles.

    Returns:
        A function that runs it and returns tiles per second; loading the model is not in it.

    Raises:
        UsageError: OpenSlide does not read this slide.
        RuntimeMissing: PyTorch or timm is not installed.
    """
    for module, extra in (("torch", "torch"), ("timm", "torch"), ("openslide", "slides")):
        require_module(module, extra=extra)
    import openslide
    import timm
    import torch
    from PIL import Image
    from torchvision import transforms

    if openslide.OpenSlide.detect_format(path) is None:
        raise UsageError(f"{path}: OpenSlide does not read it, nor can the script", hint="take an SVS or another slide")
    torch.set_num_threads(usable_cores())
    name = f"local-dir:{model_folder}" if Path(model_folder).is_dir() else model_folder
    model = timm.create_model(name, pretrained=Path(model_folder).is_dir(), num_classes=0).eval()
    data = timm.data.resolve_model_data_config(model)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data["mean"], data["std"])])
    side = grid.tile_px
    region = (round(side * grid.scale_x), round(side * grid.scale_y))

    def run() -> float:
        slide = openslide.OpenSlide(path)
        begun = time.perf_counter()
        waiting, embeddings = [], []
        for number, (x, y) in enumerate(grid.coords.tolist(), start=1):
            tile = slide.read_region((x, y), grid.level, region).convert("RGB")
            if region != (side, side):
                tile = tile.resize((side, side), Image.Resampling.BICUBIC)
            waiting.append(transform(tile))
            if len(waiting) == BATCH or number == len(grid.coords):
                with torch.inference_mode():
                    embeddings.append(model(torch.stack(waiting)).numpy())
                waiting = []
        elapsed = time.perf_counter() - begun
        slide.close()
        return len(grid.coords) / elapsed

    return run


if __name__ == "__main__":
    sys.exit(run_app(app))
