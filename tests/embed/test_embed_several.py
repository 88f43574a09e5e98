"""Several encoders on one slide: each tile is decoded once, and each output is what its encoder alone would give."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.slide import Embedding, embed_slide_for
from atlas_edge.slides import TileReader
from embed.conftest import RunHere, make_mean_bundle
from embed.test_embed import FailsLate, MeanEncoder, contents

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")

CONFIG = EmbedConfig(tissue=False, overview=False, batch=50)


class ColourEncoder(MeanEncoder):
    """Mean colour of a tile."""

    spec = MeanEncoder.spec.model_copy(update={"name": "colour", "embed_dim": 3})

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        return tiles.mean(axis=(1, 2), dtype=np.float32)


def same(one: Path, other: Path) -> bool:
    pairs = zip(contents(one), contents(other), strict=True)
    return all(first.tobytes() == second.tobytes() for first, second in pairs)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles of each call that decodes."""
    genuine, tiles = TileReader.read, list[int]()

    def read(self: TileReader, coords: Any) -> Any:
        tiles.append(len(coords))
        return genuine(self, coords)

    monkeypatch.setattr(TileReader, "read", read)
    return tiles


def test_each_tile_is_decoded_once_for_all(scan: Path, tmp_path: Path, reads: list[int]) -> None:
    wanted = [
        Embedding(encoder=kind(), out=tmp_path / kind.__name__ / "scan.h5") for kind in (MeanEncoder, ColourEncoder)
    ]
    results = embed_slide_for(wanted, scan, CONFIG)
    assert [result.tiles for result in results] == [600, 600] and sum(reads) == 600
    for one in wanted:
        embed_slide(scan, one.encoder, tmp_path / "alone.h5", CONFIG)
        assert same(one.out, tmp_path / "alone.h5")
        with h5py.File(one.out) as file:
            assert file.attrs["encoder"] == one.encoder.spec.name


def test_journals_of_different_length_go_on_each_where_it_was(
    scan: Path, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    wanted = [Embedding(encoder=kind(), out=tmp_path / f"{kind.__name__}.h5") for kind in (MeanEncoder, ColourEncoder)]
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(6), wanted[0].out, CONFIG)
    reads.clear()
    mean, colour = embed_slide_for(wanted, scan, CONFIG)
    assert (mean.resumed_tiles, colour.resumed_tiles, sum(reads)) == (300, 0, 600)
    for one in wanted:
        embed_slide(scan, one.encoder, tmp_path / "alone.h5", CONFIG)
        assert same(one.out, tmp_path / "alone.h5")
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def bundles(mean_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that want the same tiles, and one of larger tiles, in folders whose names hold dots and spaces."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("one.5", "the other"):
        shutil.copytree(mean_bundle, folder / name)
    return [folder / "one.5", folder / "the other", make_mean_bundle(folder / "large", tile_px=64)]


def test_each_of_several_bundles_has_a_folder(
    drop: Path, tmp_path: Path, bundles: list[Path], reads: list[int], run_here: RunHere
) -> None:
    (drop / "zero.svs").touch()
    out = tmp_path / "out"
    typed = [drop, "--out", out, "--no-tissue", "--no-overview", "--json"]
    for bundle in bundles:
        typed += ["--bundle", bundle]
    planned = run_here(drop / "a.tif", *typed[1:], "--dry-run")
    assert [Path(plan["out"]) for plan in json.loads(planned.stdout)["plans"]] == [
        out / name / "a.h5" for name in ("one.5", "the other", "large")
    ]
    said = run_here(*typed)
    assert said.returncode == 5 and "1 of 3 slides failed: zero.svs" in said.stderr
    assert len(json.loads(said.stdout)["slides"]) == 6
    assert sum(reads) == 2 * (600 + 150), "tiles of one size are decoded once, those of another size for themselves"
    assert same(out / "one.5" / "a.h5", out / "the other" / "a.h5")
    # As each bundle alone would have written it, and so that each alone goes on with it.
    alone = run_here(drop / "a.tif", *typed[3:6], "--bundle", bundles[2], "--out", out / "large")
    assert json.loads(alone.stdout)["skipped"][0]["out"] == str(out / "large" / "a.h5")
    (out / "the other" / "c.h5").unlink()
    (drop / "zero.svs").unlink()
    again = json.loads(run_here(*typed).stdout)
    assert [result["out"] for result in again["slides"]] == [str(out / "the other" / "c.h5")]
    assert len(again["skipped"]) == 5


def test_bundles_whose_embeddings_would_lie_in_one_place_are_refused(
    scan: Path, tmp_path: Path, bundles: list[Path], mean_bundle: Path, run_here: RunHere
) -> None:
    shutil.copytree(mean_bundle, tmp_path / "one.5")
    cases = {
        ("out", bundles[0], tmp_path / "one.5"): "two bundles are called one.5",
        ("out.h5", *bundles[:2]): "out.h5 is a file's name, expected a folder for 2 bundles",
    }
    for (out, *given), words in cases.items():
        named = [word for bundle in given for word in ("--bundle", bundle)]
        said = run_here(scan, *named, "--out", tmp_path / out)
        assert said.returncode == 2 and words in said.stderr


def test_the_environment_names_one_bundle_also_with_a_space(
    scan: Path, tmp_path: Path, bundles: list[Path], run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_EMBED_BUNDLE", str(bundles[1]))
    assert run_here(scan, "--out", tmp_path / "o.h5", "--no-overview").returncode == 0
    monkeypatch.delenv("ATLAS_EMBED_BUNDLE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_text(f"[embed]\nbundle = {json.dumps([str(bundle) for bundle in bundles[:2]])}\n")
    assert "out/the other/scan.h5" in run_here(scan, "--out", "out", "--dry-run").stderr
    (tmp_path / "atlas.toml").write_text(f"[embed]\nbundle = {json.dumps(str(bundles[1]))}\n")
    assert "to out2/scan.h5" in run_here(scan, "--out", "out2/scan.h5", "--dry-run").stderr
