"""Eight Ray workers on drawn slides, two of which are killed: `python tests/embed/ray_cluster.py --slides 300`.

Not run by pytest. It judges at the end: every slide is embedded, once, and nothing half-written is left.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from embed.conftest import make_mean_bundle, make_scan
from support import ROOT

_DRAWN = 20
_WORKERS, _KILLED = 8, 2


def main() -> int:
    """Run it and print what became of the slides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slides", type=int, default=300)
    slides = parser.parse_args().slides
    with tempfile.TemporaryDirectory(prefix="ray-cluster-") as name:
        folder = Path(name)
        bundle = make_mean_bundle(folder / "bundle")
        drawn = [make_scan(folder / f"{number}.tif", number) for number in range(_DRAWN)]
        for number in range(slides):
            place = folder / "scans" / f"{number // 100:03}" / f"s{number:05}.tif"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(drawn[number % _DRAWN], place)
        out, begun = folder / "out", time.monotonic()
        command = ["-c", "from atlas_edge.embed.cli import main; main()", "ray", folder / "scans", "--bundle", bundle]
        options = ["--out", out, "--workers", _WORKERS, "--min-tissue", 0, "--json"]
        said, environ = folder / "said.json", {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        with said.open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *map(str, command), *map(str, options)], env=environ, stdout=stdout, stderr=stderr
            )
            killed = _kill(process, out, slides)
            code = process.wait()
        if code:
            print((folder / "stderr").read_text(errors="replace")[-2000:])
        found = [slide["slide"] for slide in json.loads(said.read_text())["slides"]]
        outputs = len(list(out.rglob("*.h5")))
        left = [path.name for path in out.rglob(".*")]
        print(
            f"{slides} slides, {killed} of {_WORKERS} workers killed, {time.monotonic() - begun:.0f} s: exit {code}, "
        )
        print(f"{len(found)} results of {len(set(found))} slides, {outputs} outputs, left over: {left or 'nothing'}")
        return int(
            not (killed == _KILLED and code == 0 and len(found) == len(set(found)) == outputs == slides and not left)
        )


def _kill(process: "subprocess.Popen[bytes]", out: Path, slides: int) -> int:
    """Kill workers when a third and two thirds of the slides are done; how many."""
    killed: set[int] = set()
    while process.poll() is None and len(killed) < _KILLED:
        time.sleep(0.5)
        # Not what lies in folders of unfinished slides, which go while one looks.
        if len(list(out.glob("*/*.h5"))) < slides * (len(killed) + 1) / (_KILLED + 1):
            continue
        workers = [one.pid for one in psutil.process_iter() if one.name().startswith("ray::") and "Map" in one.name()]
        for worker in [worker for worker in workers if worker not in killed][:1]:
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
    return len(killed)


if __name__ == "__main__":
    sys.exit(main())
