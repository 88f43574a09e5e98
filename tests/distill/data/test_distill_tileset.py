import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.distill.data.tileset import open_training_tiles
from atlas_edge.errors import InputError
from atlas_edge.tiles.slide_spec import DEFAULT_MPP, slide_spec
from support import ROOT

SLIDE = Path(os.environ.get("ATLAS_SHARED", ROOT.parent / "shared")) / "data/wsi/CMU-1-Small-Region.svs"
real_slide = pytest.mark.skipif(not SLIDE.is_file(), reason="no real slide here (../shared/data/wsi)")


def test_what_is_a_slide(tmp_path: Path) -> None:
    scan = tmp_path / "a@b.svs"
    scan.write_bytes(b"x")
    assert slide_spec(str(tmp_path)) is None
    assert slide_spec("synthetic:8") is None
    plain, several = slide_spec(str(scan)), slide_spec(f"{scan}@0.5,1")
    assert plain is not None and (plain.path, plain.mpps) == (scan, DEFAULT_MPP)
    assert several is not None and (several.path, several.mpps) == (scan, (0.5, 1.0))
    every = slide_spec(f"{scan}@0.25-2")
    assert every is not None and every.mpp_range == (0.25, 2.0)
    assert every.mpps == pytest.approx((0.25 * 2**0.5, 0.5 * 2**0.5, 2**0.5))
    for mpp in ("0", "0.5.5", "2-0.5", "0-2", "0.5-1-2", "0.5-1,2"):
        with pytest.raises(InputError, match="is no µm per pixel"):
            slide_spec(f"{scan}@{mpp}")


def test_a_file_that_is_no_slide_is_told(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    (tmp_path / "scan.svs").write_bytes(b"not a slide")
    with pytest.raises(InputError, match="no slide form"):
        open_training_tiles([str(tmp_path / "scan.svs")])


def test_how_a_pack_is_cut_into_shards_does_not_change_its_views(tmp_path: Path) -> None:
    names = []
    for shards in (["a-00.zip", "a-00.zip"], ["a-00.zip", "a-01.zip"]):
        pack = tmp_path / str(len(set(shards))) / "few"
        pack.mkdir(parents=True)
        for number, shard in enumerate(shards):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 9 * number, dtype=np.uint8)).save(buffer, "PNG")
            with zipfile.ZipFile(pack / shard, "a") as archive:
                archive.writestr(f"x/{number}.png", buffer.getvalue())
        rows = "".join(f"x/{number}.png,{shard}\n" for number, shard in enumerate(shards))
        (pack / "manifest.csv").write_text(f"file,shard\n{rows}")
        tiles = open_training_tiles([str(pack)])
        names.append([tiles.id(index) for index in range(len(tiles))])
    assert names[0] == names[1] == ["few/x/0.png", "few/x/1.png"]


@real_slide
def test_a_slide_gives_tiles_at_several_scales(tmp_path: Path) -> None:
    tiles = open_training_tiles([f"{SLIDE}@0.5,1"], tile_px=224)
    ids = [tiles.id(index) for index in range(len(tiles))]
    assert len(set(ids)) == len(ids)
    fine = [index for index, name in enumerate(ids) if "/0.5/" in name]
    coarse = [index for index, name in enumerate(ids) if "/1/" in name]
    assert len(fine) > 2 * len(coarse) > 0
    # A coarse tile's first quarter is the fine tile with the same corner (within 4 px of level 0), shrunk.
    corners = np.array([[int(part) for part in name.rpartition("/")[2].split("_")] for name in ids])
    ours, theirs = next((a, b) for a in fine for b in coarse if np.abs(corners[a] - corners[b]).max() <= 4)
    large = tiles.read(theirs)
    # Compared at a resolution at which those few pixels do not matter.
    small, quarter, other = (
        np.asarray(Image.fromarray(part).resize((14, 14), Image.Resampling.BOX)).ravel()
        for part in (tiles.read(ours), large[:112, :112], large[112:, 112:])
    )
    assert np.corrcoef(small, quarter)[0, 1] > 0.95
    assert np.corrcoef(small, other)[0, 1] < 0.8
    again, other_scale = open_training_tiles([f"{SLIDE}@0.5,1"]), open_training_tiles([f"{SLIDE}@0.5"])
    assert tiles.fingerprint() == again.fingerprint()
    assert tiles.fingerprint() != other_scale.fingerprint()
    entry = tiles.provenance()[0]
    assert (entry.kind, entry.tiles) == ("slide", len(tiles))
    for opened in (tiles, again, other_scale):
        opened.close()


@real_slide
def test_a_slide_coarser_than_asked_for_is_refused() -> None:
    with pytest.raises(InputError, match="detail cannot be invented"):
        open_training_tiles([f"{SLIDE}@0.1"])
