"""What outputs hold beside embeddings: share of tissue and focus of each tile, and embeddings of the whole slide."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.output.slide_features import geometric_median_of, mean_of
from atlas_edge.slides import TileReader, open_slide, plan_grid
from atlas_edge.slides.focus import focus_of
from embed.conftest import lose_tiles
from embed.test_embed import FailsLate, MeanEncoder

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")
NAMES = ("features", "coords", "tissue_share", "focus", "slide_features", "slide_features_median")


def parts(rows: NDArray[np.float32], size: int = 7) -> Callable[[], Iterator[NDArray[np.float32]]]:
    return lambda: (rows[start : start + size] for start in range(0, len(rows), size))


def area(path: Path) -> Path:
    ring = [[0, 0], [200, 0], [200, 60], [0, 60], [0, 0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def contents(path: Path) -> dict[str, NDArray[np.float32]]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in NAMES if name in file}


def test_arrays_beside_the_embeddings(scan: Path, tmp_path: Path) -> None:
    config = EmbedConfig(mask=area(tmp_path / "m.geojson"), batch=5, min_tissue=0.2, geojson=True)
    embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", config)
    found = contents(tmp_path / "out.h5")
    x, y = found["coords"].T
    across, down = np.clip((200 - x) / 32, 0, 1), np.clip((60 - y) / 32, 0, 1)
    np.testing.assert_allclose(found["tissue_share"], across * down, rtol=1e-6)
    assert found["tissue_share"].min() < 0.5
    slide = open_slide(scan)
    pixels = TileReader(slide, plan_grid(slide, None, tile_px=32, mpp=0.5)).read(found["coords"]).pixels
    slide.close()
    assert np.array_equal(found["focus"], focus_of(pixels)) and (found["focus"] > 100).all()
    np.testing.assert_allclose(found["slide_features"], found["features"].mean(axis=0), rtol=1e-6)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["slide_features"].attrs["pooling"] == "mean"
        assert file["slide_features_median"].attrs["pooling"] == "geometric median"
    tiles = json.loads((tmp_path / "out.geojson").read_text())["features"][1:]
    for row, tile in enumerate(tiles):
        said = tile["properties"]["measurements"]
        assert (said["row"], said["focus"]) == (row, pytest.approx(found["focus"][row], rel=1e-5))
        assert said["tissue_share"] == pytest.approx(found["tissue_share"][row], abs=1e-4)


def test_other_forms_hold_the_same(scan: Path, tmp_path: Path) -> None:
    zarr, parquet = pytest.importorskip("zarr"), pytest.importorskip("pyarrow.parquet")
    config = EmbedConfig(mask=area(tmp_path / "m.geojson"), overview=False)
    for form in ("h5", "zarr", "parquet"):
        embed_slide(scan, MeanEncoder(), tmp_path / f"out.{form}", config)
    found = contents(tmp_path / "out.h5")
    group, table = zarr.open_group(tmp_path / "out.zarr", mode="r"), parquet.read_table(tmp_path / "out.parquet")
    for name in NAMES:
        assert np.array_equal(group[name][:], found[name])
    assert group["slide_features_median"].attrs["pooling"] == "geometric median"
    for name in ("tissue_share", "focus"):
        assert np.array_equal(table[name].to_numpy(), found[name])
    embed_slide(scan, MeanEncoder(), tmp_path / "all.h5", EmbedConfig(tissue=False, overview=False))
    assert "tissue_share" not in contents(tmp_path / "all.h5")


def test_a_run_that_goes_on_and_tiles_that_are_read_again_keep_their_focus(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    config = EmbedConfig(tissue=False, batch=25, overview=False)
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", config)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(12), tmp_path / "resumed.h5", config)
    lose_tiles(monkeypatch, 3)
    assert embed_slide(scan, MeanEncoder(), tmp_path / "resumed.h5", config).resumed_tiles > 0
    whole, resumed = contents(tmp_path / "whole.h5"), contents(tmp_path / "resumed.h5")
    assert set(whole) == set(NAMES) - {"tissue_share"}
    for name, values in whole.items():
        assert values.tobytes() == resumed[name].tobytes(), name


def test_the_geometric_median_is_where_distances_add_up_to_least() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(60, 8)) * rng.uniform(0.1, 5, 8)).astype(np.float32)
    rows[:20] += 40
    found = geometric_median_of(parts(rows))
    assert found.dtype == np.float32 and found.shape == (8,)

    def added_up(at: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(rows - at, axis=1).sum())

    for step in (0.01, 0.1):
        assert all(added_up(found) <= added_up(found + step * rng.normal(size=8)) for _ in range(200))
    # A third of the tiles lie far off: they carry the mean away, and not the median.
    rest = rows[20:].mean(axis=0)
    assert np.linalg.norm(found - rest) < 0.15 * np.linalg.norm(mean_of(parts(rows)) - rest)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[3, 4]], [3, 4]),
        ([[1, 1], [1, 1], [1, 1]], [1, 1]),
        ([[0, 0], [0, 0], [0, 0], [8, 6]], [0, 0]),  # most tiles are one: the median is there
        ([[0, 0], [0, 3], [4, 0], [4, 3]], [2, 1.5]),
        ([[-1, 0], [0, 0], [1, 0], [0, 5], [0, -5]], [0, 0]),  # begins where a tile is
    ],
)
def test_the_geometric_median_of_few_tiles(rows: list[list[float]], expected: list[float]) -> None:
    np.testing.assert_allclose(geometric_median_of(parts(np.array(rows, np.float32), 2)), expected, atol=2e-3)
