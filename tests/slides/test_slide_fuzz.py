"""Damaged headers end in an InputError of one line, and soon."""

import time
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.errors import InputError

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

from slides.mutations import header_bytes, mutated, walk_through  # noqa: E402

_MOST_S = 20.0


def write_slide(path: Path, *, ome: bool, tiled: bool = True, big: bool = False) -> Path:
    image = np.full((512, 640, 3), 244, dtype=np.uint8)
    image[100:400, 150:500] = (200, 110, 170)
    image[100:400:8, 150:500] = (90, 60, 140)
    segments = {"tile": (128, 128)} if tiled else {"rowsperstrip": 64}
    options = {"photometric": "rgb", "compression": "zlib" if ome else "jpeg", **segments}
    size = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=ome, bigtiff=big) as file:
        file.write(
            image, subifds=1 if ome else 0, metadata=size if ome else None, resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER", **options,
        )  # fmt: skip
        file.write(image[::4, ::4].copy(), subfiletype=1, metadata=None, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiled.tif", {"ome": False}),
        ("strips.tif", {"ome": False, "tiled": False, "big": True}),
        ("tiled.ome.tif", {"ome": True}),
        ("strips.ome.tif", {"ome": True, "tiled": False}),
    ],
)
def test_damaged_headers_are_refused_or_read_but_nothing_else(
    tmp_path: Path, name: str, options: dict[str, bool]
) -> None:
    whole = write_slide(tmp_path / f"whole-{name}", **options)
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
