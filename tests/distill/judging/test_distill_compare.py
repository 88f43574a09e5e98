import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.cli import run_app
from atlas_edge.distill.cli import app
from atlas_edge.distill.judging.compare import compare
from atlas_edge.distill.judging.encoders import StoredEncoder, open_judged
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import RuntimeMissing


class Colour:
    """Sees the mean colour; with `noise`, hardly."""

    capabilities = Capabilities()

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.spec = SimpleNamespace(name="colour", tile_px=32, embed_dim=8)
        self.runtime = "fake"
        self.calls = 0
        self._noise, self._random = noise, np.random.default_rng(seed)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls += 1
        found = np.tile(tiles.mean((1, 2)) / 255.0, 3)[:, :8]
        return (found + self._noise * self._random.normal(size=found.shape)).astype(np.float32)

    def close(self) -> None:
        pass


def test_the_better_recipe_is_found_and_equal_ones_are_not_told_apart(tiles: Path) -> None:
    good = [Colour(0.02, seed) for seed in range(2)]
    bad = [Colour(5.0, seed) for seed in range(3)]
    for found in compare(good, bad, fit=str(tiles), tiles=str(tiles)):
        assert min(found.scores) > 0.95 and max(found.other_scores) < 0.8, found
        assert len(found.scores) == 2 and len(found.other_scores) == 3
        assert 0 < found.advantage_pp.low < found.advantage_pp.estimate
        means = [100 * np.mean(group) for group in (found.scores, found.other_scores)]
        assert found.advantage_pp.estimate == pytest.approx(means[0] - means[1])
        assert found.recipe_advantage_pp is not None
        assert found.recipe_advantage_pp.low < found.advantage_pp.low
    for found in compare([Colour()], [Colour()], fit=str(tiles), tiles=str(tiles)):
        assert found.recipe_advantage_pp is None
        assert found.advantage_pp.estimate == 0 and found.advantage_pp.low < 0 < found.advantage_pp.high


def test_kept_embeddings_are_not_computed_again(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    inner = Colour()
    kept = StoredEncoder(inner, identity="a", folder=tmp_path)
    first = kept.encode(pixels)
    assert np.array_equal(kept.encode(pixels), first) and inner.calls == 1
    kept.encode(255 - pixels)
    StoredEncoder(inner, identity="b", folder=tmp_path).encode(pixels)
    assert inner.calls == 3
    kept.close()
    kept.close()
    with pytest.raises(RuntimeMissing, match="the encoder is closed"):
        kept.encode(pixels)


def test_kept_embeddings_are_of_the_same_preparation_of_tiles(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = []
    for mean in (0.5, 0.6):
        config = json.loads((tmp_path / "model/config.json").read_text())
        config["pretrained_cfg"]["mean"] = [mean] * 3
        (tmp_path / "model/config.json").write_text(json.dumps(config))
        found.append(open_judged(str(tmp_path / "model"), keep=tmp_path / "kept").encode(pixels))
    assert not np.allclose(found[0], found[1])


def test_compare_from_the_command_line(
    tiny_student: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(tiny_student), "--against", "random:vit_tiny_patch16_224:0", "--fit", str(tiles)]
    limits = ["--fit-limit", "8", "--limit", "8", "--threads", "1"]
    assert run_app(app, [*arguments, *limits, "--keep", str(tmp_path / "kept"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["method"] for item in found] == ["linear", "knn"]
    assert all(len(item["scores"]) == len(item["other_scores"]) == 1 for item in found)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 4
    assert run_app(app, ["compare", "--against", str(tiny_student), "--fit", str(tiles)]) == 2
    assert "both sides" in capsys.readouterr().err
    assert run_app(app, ["compare", "random:vit_tiny_patch16_224", "--against", "x", "--fit", str(tiles)]) == 2
    assert "names no seed" in capsys.readouterr().err
