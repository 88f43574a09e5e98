"""Damages slides of every form in many ways, takes each through `atlas-embed --dry-run` and reads all its tiles.

    python tests/slides/fuzz_slides.py --count 1000 --seed 0 [--kinds NDPI DICOM] [--keep FOLDER]

Every slide must be read, or refused in one line with exit code 4 or 5: no traceback, no crash, nothing printed by a
library, at most 20 s of the processor and 4 GiB. Exit 1 where one was not; `--keep` then holds those slides. The real
slides below `../shared/data/wsi` are tried, too, where they are there. POSIX only.
"""

import functools
import io
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fuzzing
from atlas_edge.cli import run_app
from atlas_edge.embed.cli import app
from embed.conftest import make_mean_bundle
from fuzzing import Kind, Limits, fuzz
from slides import forms
from slides.mutations import header_bytes, mutated, walk_through
from support import ROOT

# What the interpreter and its libraries map already is below 1 GiB.
_LIMITS = Limits(mib=4096, address_mib=3 * 1024, results=("0", "4", "5"))
_REAL = ROOT.parent / "shared/data/wsi"
_IMPORTS = ("openslide", "tifffile", "imagecodecs", "scipy.ndimage", "atlas_edge.embed.slide", "rich.console")


def main() -> int:
    slides = sorted(_REAL.glob("*.svs")) + sorted(_REAL.glob("*.tif"))
    real = {path.name: _tiff(functools.partial(shutil.copy, path), path.name) for path in slides}
    return fuzz(str(__doc__), KINDS | real, _LIMITS)


def use(slide: str) -> Callable[[Path], int]:
    """Plan the embedding of a slide in a folder, and read all its tiles, also where its scale is lost."""

    def used(folder: Path) -> int:
        path, screen = folder / slide, io.StringIO()
        with redirect_stdout(screen), redirect_stderr(screen):
            code = run_app(
                app, [str(path), "--bundle", str(folder / "bundle"), "--out", str(folder / "out.h5"), "--dry-run"]
            )
        errors = [line for line in screen.getvalue().splitlines() if not line.startswith(("  fix: ", "atlas_edge."))]
        if code and not (len(errors) == 1 and errors[0].startswith("atlas-embed: error: ")):
            raise AssertionError(screen.getvalue())
        if code == 0 or "--mpp" in screen.getvalue():
            walk_through(path)
        return code

    return used


def _damage_header(path: Path, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        return fuzzing.damage(path, rng)
    return mutated(path.read_bytes(), header_bytes(path), int(rng.integers(2**32)))


def _kind(write: Callable[[Path], Any], slide: str, damaged: str, *options: Any) -> Kind:
    def written(folder: Path) -> None:
        write(folder)
        make_mean_bundle(folder / "bundle")

    return Kind(written, damaged, use(slide), _IMPORTS, *options)


def _tiff(write: Callable[[Path], Any], name: str) -> Kind:
    return _kind(write, name, name, _damage_header)


def _small(name: str, **options: bool) -> Kind:
    return _tiff(lambda folder: forms.write_tiff(folder / name, **options), name)


KINDS = {
    "generic TIFF": _small("a.tif"),
    "BigTIFF, strips": _small("a.tif", tiled=False, big=True),
    "OME-TIFF, tiles": _small("a.ome.tif", ome=True),
    "OME-TIFF, strips": _small("a.ome.tif", ome=True, tiled=False),
    "OME BigTIFF": _small("a.ome.tif", ome=True, big=True),
    "NDPI": _tiff(forms.WRITERS["ndpi"], "a.ndpi"),
    "VMS index": _kind(forms.WRITERS["hamamatsu"], "a.vms", "a.vms"),
    "VMS image": _kind(forms.WRITERS["hamamatsu"], "a.vms", "a-1-0.jpg"),
    "MRXS ini": _kind(forms.WRITERS["mirax"], "a.mrxs", "a/Slidedat.ini"),
    "MRXS index": _kind(forms.WRITERS["mirax"], "a.mrxs", "a/Index.dat"),
    "MRXS data": _kind(forms.WRITERS["mirax"], "a.mrxs", "a/Data0000.dat"),
    "DICOM": _kind(forms.WRITERS["dicom"], "a/0.dcm", "a/0.dcm"),
    "DICOM, another level": _kind(forms.WRITERS["dicom"], "a/0.dcm", "a/1.dcm"),
}

if __name__ == "__main__":
    sys.exit(main())
