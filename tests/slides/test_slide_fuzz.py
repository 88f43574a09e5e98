"""Damaged headers end in an InputError of one line, and soon."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_edge.errors import InputError

pytest.importorskip("openslide")
pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

from slides.forms import write_tiff
from slides.mutations import header_bytes, mutated, walk_through
from support import ROOT

_MOST_S = 20.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiled.tif", {}),
        ("strips.tif", {"tiled": False, "big": True}),
        ("tiled.ome.tif", {"ome": True}),
        ("strips.ome.tif", {"ome": True, "tiled": False}),
    ],
)
def test_damaged_headers_are_refused_or_read_but_nothing_else(
    tmp_path: Path, name: str, options: dict[str, bool]
) -> None:
    whole = write_tiff(tmp_path / f"whole-{name}", **options)
    assert walk_through(whole) > 15
    data, spots, refused = whole.read_bytes(), header_bytes(whole), []
    for seed in range(25):
        path = tmp_path / name
        path.write_bytes(mutated(data, spots, seed))
        begun = time.perf_counter()
        try:
            walk_through(path)
        except InputError as error:
            refused.append(error.message)
        assert time.perf_counter() - begun < _MOST_S, f"seed {seed}"
    assert 5 < len(refused) < 25
    assert not [message for message in refused if "\n" in message]


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_damaged_slides_of_other_forms_are_read_or_refused() -> None:
    script = Path(__file__).with_name("fuzz_slides.py")
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    kinds = ("NDPI", "VMS index", "MRXS ini", "MRXS index", "DICOM")
    done = subprocess.run(
        [sys.executable, script, "--count", "15", "--kinds", *kinds], capture_output=True, text=True, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n| all | 15 | " in done.stdout
