"""Several encoders on one slide: each tile is decoded once, and each output is what its encoder alone would give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.slide import Embedding, embed_slide_for
from atlas_edge.slides import TileReader
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
