"""Patch tokens in outputs: those of each tile's own row, float16, also after a kill and a fault of the share."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.output.tokens import tokens_in_words
from atlas_edge.embed.resume.plan import differences, plan_of
from atlas_edge.embed.slide import plan_slide
from atlas_edge.embed.watch.encoder import WatchedEncoder
from atlas_edge.errors import UsageError
from atlas_edge.slides import TileReader
from atlas_edge.spec import TokenGrid
from embed.conftest import RunHere, lose_tiles
from embed.test_embed import MeanEncoder

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")


class TokenEncoder(MeanEncoder):
    """The mean colour of each cell as a patch token; the first channel is too large for float16."""

    spec = MeanEncoder.spec.model_copy(update={"tokens": TokenGrid(rows=4, columns=4, channels=3)})

    def __init__(self, calls: int = 10**9) -> None:
        self.calls = calls

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise AssertionError("both come out of one call")

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        features = super().encode(tiles)
        return features, features.reshape(-1, 16, 3) * np.array([1e4, 1, 1], np.float32)


CONFIG = EmbedConfig(tissue=False, tokens=True, batch=25, overview=False)


def test_tokens_are_of_their_rows_in_both_forms(scan: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for form in ("h5", "zarr"):
        embed_slide(scan, TokenEncoder(), tmp_path / f"out.{form}", CONFIG)
    with h5py.File(tmp_path / "out.h5") as file:
        features, tokens, about = file["features"][:], file["tokens"][:], dict(file.attrs)
    assert tokens.dtype == np.float16 and tokens.shape == (600, 16, 3)
    assert np.array_equal(tokens[..., 1:], features.reshape(-1, 16, 3)[..., 1:].astype(np.float16))
    assert (tokens[..., 0] == np.finfo(np.float16).max).all()
    assert np.array_equal(zarr.open_group(tmp_path / "out.zarr", mode="r")["tokens"][:], tokens)
    plans = [plan_of(TokenEncoder.spec, EmbedConfig(tissue=False, tokens=tokens), "") for tokens in (True, False)]
    assert not differences(about, plans[0]) and differences(about, plans[1]) == ["tokens True, now False"]


def test_a_run_that_goes_on_has_the_same_tokens(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    embed_slide(scan, TokenEncoder(), tmp_path / "whole.h5", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, TokenEncoder(12), tmp_path / "resumed.h5", CONFIG)
    # A power cut may leave more than was said to be there.
    with (tmp_path / ".resumed.h5.work" / "tokens.f16").open("ab") as file:
        file.write(b"half a row")
    lose_tiles(monkeypatch, 3)
    result = embed_slide(scan, TokenEncoder(), tmp_path / "resumed.h5", CONFIG)
    assert result.resumed_tiles > 0 and result.unreadable == {}
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "resumed.h5") as resumed:
        for name in ("features", "tokens", "focus"):
            assert whole[name][:].tobytes() == resumed[name][:].tobytes()


def test_tiles_that_cannot_be_read_have_none(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = TileReader.read

    def read(self: TileReader, coords: NDArray[np.int64]) -> object:
        tiles = genuine(self, coords)
        gone = {index: "gone" for index, corner in enumerate(coords.tolist()) if corner == [64, 32]}
        tiles.unreadable.update(gone)
        return tiles

    embed_slide(scan, TokenEncoder(), tmp_path / "whole.h5", CONFIG)
    monkeypatch.setattr(TileReader, "read", read)
    embed_slide(scan, TokenEncoder(), tmp_path / "out.h5", CONFIG)
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "out.h5") as file:
        kept = (whole["coords"][:] != (64, 32)).any(axis=1)
        assert kept.sum() == 599 == len(file["tokens"])
        assert np.array_equal(file["tokens"][:], whole["tokens"][:][kept])


def test_where_there_are_none_is_said_before_anything_begins(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no patch tokens"):
        embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", CONFIG)
    for form in ("parquet", "pt"):
        with pytest.raises(UsageError, match=rf"--tokens: \.{form} holds no patch tokens"):
            embed_slide(scan, TokenEncoder(), tmp_path / f"out.{form}", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.tif"]


def test_what_they_take_is_said(scan: Path, tmp_path: Path) -> None:
    assert tokens_in_words(TokenEncoder.spec) == "4 x 4 patch tokens of 3 channels: 0.1 kB a tile as float16"
    few = replace(CONFIG, tile_mpp=2.0)
    for config in (CONFIG, few):
        plan = plan_slide(scan, TokenEncoder.spec, config)
        embed_slide(scan, TokenEncoder(), tmp_path / f"{plan.tiles}.h5", config)
        written = (tmp_path / f"{plan.tiles}.h5").stat().st_size
        assert written <= plan.size_bytes < 1.3 * written + 2**15


def test_on_the_command_line(scan: Path, mean_bundle: Path, tmp_path: Path, run_here: RunHere) -> None:
    arguments = [scan, "--bundle", mean_bundle, "--out", tmp_path / "o.h5", "--dry-run", "--json"]
    refused = run_here(*arguments, "--tokens")
    assert refused.returncode == 2 and "--output tokens" in refused.stderr, refused.stderr
    done = run_here(*arguments)
    assert done.returncode == 0 and " MB, would go to " in " ".join(done.stderr.split()), done.stderr
    assert json.loads(done.stdout)["plans"][0]["size_bytes"] > 600 * 48 * 4


def test_a_watcher_knows_whose_fault_tokens_are() -> None:
    watched = WatchedEncoder(TokenEncoder(0), batch=1)
    tiles = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt):
        watched.encode_tokens(tiles)
    assert watched.raised is None

    class Broken(TokenEncoder):
        def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            raise RuntimeError("the GPU is lost")

    watched = WatchedEncoder(Broken(), batch=1)
    with pytest.raises(RuntimeError) as raised:
        watched.encode_tokens(tiles)
    assert watched.raised is raised.value
