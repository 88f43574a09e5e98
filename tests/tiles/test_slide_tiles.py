"""Slides as tile sets: what calibrates may come straight from the scanner."""

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.tiles import batches, open_tiles, provenance, slide_tiles
from atlas_edge.tiles.overlap import halves
from atlas_edge.tiles.slide_spec import SlideSpec
from atlas_edge.tiles.slide_tiles import SlideTiles

pytest.importorskip("openslide")
TiffFile, imwrite = (getattr(pytest.importorskip("tifffile"), name) for name in ("TiffFile", "imwrite"))


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


def test_every_scale_between_two(slides: Path) -> None:
    spec = f"{slides / 'case1.svs'}@0.5-2"
    with closing(open_tiles(spec)) as source, closing(open_tiles(spec)) as again:
        records = list(source.records())
        assert records == list(again.records()) and source.fingerprint() == again.fingerprint()
        mpps = np.array([record.mpp for record in records])
        assert mpps.min() >= 0.5 and mpps.max() <= 2.0
        # Log-uniform within each octave, of which the finer has more tiles.
        for first, least in ((0.5, 8), (1.0, 2)):
            octave = mpps[(mpps >= first) & (mpps < 2 * first)]
            assert len(set(octave)) == len(octave) >= least and np.ptp(np.log2(octave)) > 0.3
        coarse = max(records, key=lambda record: record.mpp or 0)
        tile = source.read(coarse)
        assert tile.shape == (224, 224, 3) and tile.std() > 5
        np.testing.assert_array_equal(tile, again.read(coarse))
    with closing(open_tiles(f"{slides / 'case1.svs'}@0.5,1")) as fixed:
        assert fixed.fingerprint() != source.fingerprint()
    with pytest.raises(InputError, match="detail cannot be invented") as told:
        open_tiles(f"{slides / 'case1.svs'}@0.25-2")
    assert told.value.hint == f"give {slides / 'case1.svs'}@0.5-2"


def test_a_slide_s_tiles_are_told_by_number(slides: Path) -> None:
    with closing(SlideTiles(SlideSpec(slides / "case1.svs", (0.5, 1.0)))) as source:
        listing, records = source.listing(), list(source.records())
        assert len(listing) == len(records) > 8
        assert [listing[number] for number in range(len(records))] == records and listing[-1] == records[-1]
        assert list(listing[3:7]) == records[3:7]
        with pytest.raises(IndexError):
            listing[len(records)]
        # A slide of three million tiles: their places, and no record.
        grid = source._grids[0]
        source._grids = (replace(grid, coords=np.zeros((3_000_000, 2), dtype=np.int64)), source._grids[1])
        tracemalloc.start()
        large = source.listing()
        assert len(large) == 3_000_000 + len(records) - len(grid.coords)
        assert large[-1] == records[-1] and large[2_999_999].id == "0.5/0_0"
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()


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
    with pytest.raises(InputError, match="no slide form"):
        open_tiles(tmp_path / "scan.svs")
    with pytest.raises(InputError, match=r"none of 1 slides in .* can be used: .* no slide form"):
        next(open_tiles(tmp_path).records())


def test_a_bad_slide_of_a_folder_is_left_out_by_name(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for slide in slides.iterdir():
        (tmp_path / slide.name).symlink_to(slide)
    (tmp_path / "case0.svs").write_bytes(b"cut off")
    Image.new("RGB", (600, 600), (243, 243, 243)).save(tmp_path / "case3.tif")
    with closing(open_tiles(slides)) as whole, closing(open_tiles(tmp_path)) as source:
        records = list(source.records())
        assert [record.id for record in records] == [record.id for record in whole.records()]
        np.testing.assert_array_equal(source.read(records[-1]), whole.read(list(whole.records())[-1]))
        assert source.fingerprint() == whole.fingerprint()
    warnings = [record.getMessage() for record in caplog.records if record.name == "atlas_edge"]
    assert [Path(text.split()[2]).name for text in warnings] == ["case0.svs", "case3.tif"]
    assert "give" in warnings[1] and "case3.tif@VALUE (0.25 for most 40x scans" in warnings[1]


def test_slides_are_opened_when_needed_and_few_at_a_time(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import atlas_edge.slides

    found, open_now = [], []
    find, opening = atlas_edge.slides.find_tissue, atlas_edge.slides.open_slide

    def opened(path: Path, **options: Any) -> Any:
        slide = opening(path, **options)
        open_now.append(slide)
        close = slide.close
        monkeypatch.setattr(slide, "close", lambda: (close(), open_now.remove(slide)))
        return slide

    monkeypatch.setattr(atlas_edge.slides, "open_slide", opened)
    monkeypatch.setattr(atlas_edge.slides, "find_tissue", lambda slide: (found.append(slide.name), find(slide))[1])
    monkeypatch.setattr(slide_tiles, "_OPEN_SLIDES", 1)
    source = open_tiles(slides)
    assert not open_now
    records = list(source.records())
    source.fingerprint()
    # In turns, and from several threads: a slide that is being read stays open.
    turns = [record for pair in zip(records, records[::-1], strict=True) for record in pair][:40]
    for batch in batches(source, turns, size=8, threads=4):
        for record, tile in zip(batch.records, batch.pixels, strict=True):
            np.testing.assert_array_equal(tile, source.read(record))
    assert sorted(found) == ["case1", "case2"]
    assert len(open_now) == 1
    source.close()
    assert not open_now


def test_a_slide_that_does_not_say_its_scale(tmp_path: Path) -> None:
    from atlas_edge.slides.synthetic import make_slide

    said = make_slide(tmp_path / "said.tif", 1500, 1500, seed=1).path
    with TiffFile(said) as file:
        levels = [page.asarray() for page in file.pages]
    silent = tmp_path / "silent.tif"
    imwrite(silent, levels[0], photometric="rgb", tile=(256, 256), metadata=None)
    with pytest.raises(InputError, match=r"does not say[\s\S]*fix: give .*silent\.tif@VALUE \(0\.25"):
        open_tiles(silent)
    with closing(open_tiles(f"{silent}@0.5,1")) as source, closing(open_tiles(f"{said}@0.5,1")) as known:
        # The finest scale is that of its pixels.
        assert {record.mpp for record in source.records()} == {0.5, 1.0}
        assert [record.id for record in source.records()] == [record.id for record in known.records()]
    # A slide that says its own keeps it.
    with pytest.raises(InputError, match=r"detail cannot be invented[\s\S]*fix: give .*said\.tif@0\.5$"):
        open_tiles(f"{said}@0.25")


def test_large_tiffs_are_slides_and_small_ones_tiles(tmp_path: Path) -> None:
    from atlas_edge.slides.synthetic import make_slide

    make_slide(tmp_path / "case.tif", 1500, 1500, seed=1)
    assert open_tiles(tmp_path).kind == "flat folder"
    Image.new("RGB", (4097, 4097)).save(tmp_path / "large.tif", compression="tiff_deflate")
    with closing(open_tiles(tmp_path)) as source:
        assert source.kind == "slides"
        assert {record.group for record in source.records()} == {"case"}
