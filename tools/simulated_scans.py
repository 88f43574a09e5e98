"""Registered scans that nobody made: tiles as several scanners and stainers might have left them, as one tile set.

    python tools/simulated_scans.py ../shared/data/dev_crc5@test --count 48 --out /tmp/scans

Real tissue, simulated scanners and stains: every tile is a place that occurs on all of them. A scanner stands for a
centre, a tile for a slide, so that PathoROB's index, croma and plismbench have what they ask for. What they say of it
is not what they say of real scans.
"""

import csv
import sys
from pathlib import Path

from PIL import Image

from atlas_edge.bench.accuracy.stress import Shift
from atlas_edge.bench.accuracy.tileset import pick_tiles
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import InputError
from atlas_edge.system.atomic import atomic_folder
from atlas_edge.tiles import open_tiles
from atlas_edge.tiles.shifts import SCANNERS, as_scanner, shift_hed

COLUMNS = ("file", "shard", "label", "group", "center", "scanner", "stain", "position")

app = make_app("simulated_scans", __doc__ or "")


@app.default
def simulated_scans(tiles: str, /, *, out: Path, count: int = 48, overwrite: bool = False) -> None:
    """Write a pack: count x scanners x two stains.

    Args:
        tiles: Labelled tiles.
        out: Folder to write.
        count: Tiles, balanced over the labels.
        overwrite: Replace such a folder.
    """
    chosen = pick_tiles(open_tiles(tiles, role="evaluation"), limit=count)
    if chosen.labels is None:
        raise InputError(f"the tiles of {tiles} have no labels", hint="give class folders, or a label column")
    stains: dict[str, Shift] = {
        "as it is": lambda pixels: pixels,
        "eosin x 0.75": lambda pixels: shift_hed(pixels, eosin=0.75),
    }
    with atomic_folder(out, marks=("manifest.csv",), overwrite=overwrite) as folder:
        rows = []
        for place, (record, label) in enumerate(zip(chosen.records, chosen.labels, strict=True)):
            pixels = chosen.source.read(record)
            for scanner in SCANNERS:
                for number, (stain, shift) in enumerate(stains.items()):
                    name = f"{place:04d}-{scanner}-{number}.png"
                    Image.fromarray(as_scanner(shift(pixels), scanner=scanner)).save(folder / name)
                    rows.append((name, "", label, f"slide {place}", scanner, scanner, stain, f"place {place}"))
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    print(
        f"{out}: {len(rows)} tiles of {len(chosen.records)} places on {len(SCANNERS)} scanners in {len(stains)} stains"
    )


if __name__ == "__main__":
    sys.exit(run_app(app))
