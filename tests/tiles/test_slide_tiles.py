"""Slides as tile sets: what calibrates may come straight from the scanner."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.errors import InputError
from atlas_edge.tiles import batches, open_tiles, provenance
from atlas_edge.tiles.overlap import halves

pytest.importorskip("openslide")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from atlas_edge.slides.synthetic import make_slide

    folder = tmp_path_factory.mktemp("slides")
    for seed in (1, 2):
        # Scanners name their TIFFs so; OpenSlide looks at what is inside.
        made = make_slide(folder / f"{seed}.tif", 2000, 2000, seed=seed).path
        made.rename(folder / f"case{seed}.svs")
    return folder


def test_one_slide(slides: Path) -> None:
    with (
        closing(open_tiles(slides / "case1.svs", role="calibration")) as source,
        closing(open_tiles(f"{slides / 'case1.svs'}@1")) as coarse,
    ):
        records = list(source.records())
        assert {record.group for record in records} == {"case1"}
        assert all(record.mpp == pytest.approx(0.5) for record in records)
        (batch,) = batches(source, records[:3], size=8, tile_px=224)
        assert batch.pixels.shape == (3, 224, 224, 3)
        assert batch.pixels.std() > 5
        assert 0 < len(coarse) < len(records)


def test_folder_of_slides(slides: Path) -> None:
    with closing(open_tiles(slides)) as source, closing(open_tiles(slides / "case2.svs")) as alone:
        records = list(source.records())
        assert source.kind == "slides"
        assert {record.group for record in records} == {"case1", "case2"}
        assert len({record.id for record in records}) == len(records)
        assert provenance(source).tiles == len(records)
        first, second = halves(records)
        assert {record.group for record in first} != {record.group for record in second}
        last = next(record for record in records if record.group == "case2")
        np.testing.assert_array_equal(source.read(last), alone.read(next(alone.records())))


def test_damaged_slide_is_told(tmp_path: Path) -> None:
    (tmp_path / "scan.svs").write_bytes(b"not a slide")
    for path in (tmp_path, tmp_path / "scan.svs"):
        with pytest.raises(InputError, match="no slide form"):
            open_tiles(path)
