"""How long after a scan's end its embeddings are there: a slide is copied into a watched folder piece by piece.

    python tools/timing/scan_end.py SLIDE --bundle BUNDLE --tile-mpp 0.5

By the watcher's own settle time, a shorter one, and by a marker that the scanner puts beside what it has finished.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from atlas_edge.cli import make_app, run_app
from atlas_edge.embed import EmbedConfig
from atlas_edge.embed.config import WatchOptions
from atlas_edge.embed.watch.watcher import Watcher
from atlas_edge.embed.workers import open_encoder
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError

_PIECES = 10
_LONGEST_S = 600.0

app = make_app("scan_end", __doc__ or "")


@app.default
def main(
    slide: Path,
    /,
    *,
    bundle: str,
    tile_mpp: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    settle_s: Annotated[tuple[float, ...], Parameter(name="--settle-seconds")] = (30.0, 10.0),
    poll_s: Annotated[float, Parameter(name="--poll-seconds", validator=validators.Number(gt=0))] = 5.0,
    scan_s: Annotated[float, Parameter(name="--scan-seconds", validator=validators.Number(gte=0))] = 10.0,
) -> None:
    """Measure, and print a table.

    Args:
        slide: File to copy.
        bundle: Bundle folder.
        tile_mpp: µm per pixel of tiles; the encoder's own by default.
        settle_s: Settle times.
        poll_s: Pause between looks.
        scan_s: Seconds that copying takes.
    """
    config = EmbedConfig(tile_mpp=tile_mpp)
    encoder, _ = open_encoder(bundle, batch=config.batch)
    print("| finished when | from the scan's end to the embeddings | of which embedding |\n|---|---|---|")
    for settle in settle_s:
        options = WatchOptions(settle_s=settle, poll_s=poll_s)
        print(f"| unchanged for {settle:g} s | {_measured(slide, encoder, config, options, scan_s)} |", flush=True)
    options = WatchOptions(marker_only=True, poll_s=poll_s)
    print(f"| `NAME.done` is there | {_measured(slide, encoder, config, options, scan_s)} |")
    encoder.close()


def _measured(slide: Path, encoder: Encoder, config: EmbedConfig, options: WatchOptions, scan_s: float) -> str:
    with tempfile.TemporaryDirectory(prefix="scan-end-") as name:
        drop, out = Path(name, "in"), Path(name, "out")
        drop.mkdir()
        watcher = Watcher([drop], out, encoder, config, options)
        thread = threading.Thread(target=watcher.run)
        thread.start()
        try:
            _scan(slide, drop / slide.name, scan_s)
            if options.marker_only:
                (drop / f"{slide.name}.done").touch()
            ended = time.monotonic()
            while not (rows := [row for row in watcher.view.status().rows if row["state"] == "done"]):
                if not thread.is_alive() or time.monotonic() - ended > _LONGEST_S:
                    raise InputError(f"{slide} was not embedded", hint="embed it by atlas-embed first")
                time.sleep(0.05)
            return f"{time.monotonic() - ended:.1f} s | {rows[0]['finished_at'] - rows[0]['started_at']:.1f} s"
        finally:
            watcher.stop()
            thread.join()


def _scan(slide: Path, place: Path, seconds: float) -> None:
    data = slide.read_bytes()
    size = len(data) // _PIECES + 1
    with place.open("wb") as file:
        for start in range(0, len(data), size):
            time.sleep(seconds / _PIECES)
            file.write(data[start : start + size])
            file.flush()


if __name__ == "__main__":
    raise SystemExit(run_app(app))
