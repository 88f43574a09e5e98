"""`atlas-distill pack`: slides as WebDataset tars."""

import errno
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openslide")
pytest.importorskip("tifffile")

from atlas_edge.cli import run_app
from atlas_edge.distill.cli import app
from atlas_edge.distill.data.tileset import open_training_tiles
from atlas_edge.slides.synthetic import make_slide
from atlas_edge.tiles.slide_spec import slide_spec
from atlas_edge.tiles.slide_tiles import SlideTiles


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed in (1, 2):
        made = make_slide(folder / f"{seed}.tif", 1200, 1200, seed=seed).path
        made.rename(folder / f"case{seed}.svs")
    return folder


def pack(*words: object) -> int:
    return run_app(app, ["pack", *map(str, words), "--tile-px", "64", "--json"])


def test_tiles_are_those_of_the_slides(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert pack(f"{slides}@0.5-1", "--out", out, "--quality", 95, "--licence", "cc0-1.0") == 0
    said = json.loads(capsys.readouterr().out)
    tiles = open_training_tiles([str(out)])
    assert (said["shards"], said["made"], said["tiles"]) == (2, 2, len(tiles)) and len(tiles) > 20
    assert tiles.mpp_range == (0.5, 1.0) and tiles.provenance()[0].licence == "cc0-1.0"
    assert sorted(set(tiles.slides().tolist())) == [0, 1]
    spec = slide_spec(f"{slides / 'case2.svs'}@0.5-1")
    assert spec is not None
    source = SlideTiles(spec, tile_px=64)
    packed = [tiles.entry(index)[1] for index in range(len(tiles))]
    own = [index for index, record in enumerate(packed) if record.group == "case2"]
    for index, record in zip(own, source.records(), strict=True):
        assert packed[index].mpp == pytest.approx(record.mpp)
    last = list(source.records())[-1]
    assert np.abs(tiles.read(own[-1]).astype(int) - source.read(last)).mean() < 3
    source.close()
    # As any reader of WebDataset finds it.
    with tarfile.open(next(out.glob("case2*.tar"))) as tar:
        image, facts = (tar.extractfile(name) for name in tar.getnames()[-2:])
        assert image is not None and facts is not None and Image.open(image).size == (64, 64)
        assert json.load(facts) == {"slide": "case2", "mpp": last.mpp, "x": last.locator[1], "y": last.locator[2]}


def test_it_goes_on_where_it_stopped(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert pack(f"{slides}@0.5", "--out", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    first = min(out.glob("*.tar"))
    first.unlink()
    (tmp_path / "junk.svs").write_bytes(b"no slide")
    capsys.readouterr()
    # A slide that cannot be read is left out, and said; the others are packed.
    assert pack(f"{slides}@0.5", tmp_path / "junk.svs", "--out", out) == 5
    said = capsys.readouterr()
    assert json.loads(said.out)["made"] == 1 and "1 of 3 slides are left out" in said.err and "junk.svs" in said.err
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {name: data for name, data in after.items() if not name.endswith(".npz")} == {
        name: data for name, data in before.items() if not name.endswith(".npz")
    }
    assert after.keys() == before.keys()
    assert pack(f"{slides}@0.5", "--out", out, "--quality", 80) == 2
    assert "give the same options" in capsys.readouterr().err


def test_a_place_that_takes_no_shards_is_told(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert pack(f"{slides}@0.5", "--out", tmp_path / "file") == 2
    assert "file is a file, expected a folder" in capsys.readouterr().err
    assert pack(f"{slides}@0.5", "--out", tmp_path / "file" / "under") == 5
    written: list[Path] = []

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".tar" and written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr("atlas_edge.distill.data.packing.write_atomic", full)
    capsys.readouterr()
    assert pack(f"{slides}@0.5", "--out", tmp_path / "full") == 5
    said = capsys.readouterr().err
    assert "full cannot be written: No space left on device" in said and "the same command goes on" in said
    assert not list((tmp_path / "full").glob("*.tar"))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nowhere"], 5, "is no slide and no folder of slides"),
        (["{slides}@fine"], 5, "is no slide and no folder of slides"),
        ([], 5, "no slides are given"),
        (["{slides}@0.5", "--quality", "101"], 2, "quality"),
        (["{slides}@0.01"], 5, "detail cannot be invented"),
    ],
)
def test_what_cannot_be_packed_is_told(
    words: list[str], status: int, said: str, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(*(word.format(slides=slides) for word in words), "--out", tmp_path / "out") == status
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))
