"""The zarr that spatialdata and LazySlide open: names, links and places as their formats ask for them."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.jobs import leave_out_done
from atlas_edge.embed.resume.plan import attributes_of, differences, plan_of
from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.slides import TileReader
from embed.test_embed import MeanEncoder

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
parquet = pytest.importorskip("pyarrow.parquet")


def test_tiles_are_shapes_and_embeddings_their_table(scan: Path, tmp_path: Path) -> None:
    config = EmbedConfig(tile_mpp=0.7, overlap=8, overview=False)
    for form in ("h5", "spatialdata"):
        embed_slide(scan, MeanEncoder(), tmp_path / f"scan.{form}", config)
    root = zarr.open_group(tmp_path / "scan.spatialdata", mode="r")
    table = root["tables/mean_tiles"]
    with h5py.File(tmp_path / "scan.h5") as plain:
        arrays = {name: plain[name][:] for name in plain}
        size = 32 * 0.7 / plain.attrs["slide_mpp"]
    coords = arrays["coords"]
    assert np.array_equal(table["X"][:], arrays["features"])
    assert np.array_equal(table["obs/focus"][:], arrays["focus"])
    assert np.array_equal(table["obs/tissue_share"][:], arrays["tissue_share"])
    assert np.array_equal(table["uns/slide_features"][:], arrays["slide_features"])
    assert np.allclose(table["obsm/spatial"][:], coords + size / 2)
    # TableModel: each row names its region and its instance there.
    assert dict(table.attrs) | {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"} == dict(
        table.attrs
    )
    links = {name: array[()] for name, array in table["uns/spatialdata_attrs"].arrays()}
    assert links == {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
    assert table["obs"].attrs["column-order"] == ["tile_id", "library_id", "tissue_share", "focus"]
    assert list(table["obs/library_id/categories"][:]) == ["tiles"] and not table["obs/library_id/codes"][:].any()
    shapes = parquet.read_table(tmp_path / "scan.spatialdata" / "shapes" / "tiles" / "shapes.parquet")
    assert shapes["tile_id"].to_pylist() == list(table["obs/tile_id"][:]) == list(range(len(coords)))
    geo = json.loads(shapes.schema.metadata[b"geo"])
    assert geo["columns"][geo["primary_column"]]["encoding"] == "WKB"
    for box, (x, y) in zip(shapes["geometry"].to_pylist(), coords.tolist(), strict=True):
        order, kind, rings, points, *corners = struct.unpack("<BIII10d", box)
        assert (order, kind, rings, points) == (1, 3, 1, 5)
        xs, ys = np.array(corners[::2]), np.array(corners[1::2])
        assert (xs.min(), ys.min()) == (x, y) and np.allclose((xs.max() - x, ys.max() - y), size)
        assert (xs[0], ys[0]) == (xs[-1], ys[-1])
        # Counterclockwise, as GeoParquet asks of the outer ring: twice the area by the shoelace formula is positive.
        assert np.isclose(np.sum(xs[:-1] * ys[1:] - xs[1:] * ys[:-1]), 2 * size**2)


def test_wsidata_knows_how_tiles_are_read(scan: Path, tmp_path: Path) -> None:
    embed_slide(scan, MeanEncoder(), tmp_path / "s.spatialdata", EmbedConfig(tile_mpp=0.7, overlap=8, overview=False))
    spec = zarr.open_group(tmp_path / "s.spatialdata", mode="r").attrs["tile_spec"]["tiles"]
    assert (spec["height"], spec["width"], spec["stride_width"], spec["mpp"]) == (32, 32, 24, 0.7)
    assert spec["ops_level"] == 0 and spec["ops_downsample"] == spec["base_downsample"] == pytest.approx(1.4)


def test_every_part_says_how_it_is_written(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.spatialdata"
    embed_slide(scan, MeanEncoder(), out, EmbedConfig(tissue=False, overview=False))
    root = zarr.open_group(out, mode="r")
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    silent = [name for name, part in root["tables/mean_tiles"].members(None) if "encoding-version" not in part.attrs]
    assert not silent, "what does not say how it is written is not read"
    assert root["shapes/tiles"].attrs["encoding-type"] == "ngff:shapes"


def test_an_unreadable_tile_is_left_out(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = TileReader.read

    def read(self: TileReader, coords: NDArray[np.int64]) -> object:
        tiles = genuine(self, coords)
        tiles.unreadable.update(
            {place: "damaged" for place, corner in enumerate(coords.tolist()) if corner == [64, 32]}
        )
        return tiles

    monkeypatch.setattr(TileReader, "read", read)
    result = embed_slide(scan, MeanEncoder(), tmp_path / "scan.spatialdata", EmbedConfig(tissue=False, overview=False))
    root = zarr.open_group(tmp_path / "scan.spatialdata", mode="r")
    assert result.tiles == 599 and root["tables/mean_tiles/X"].shape == (599, 48)
    assert [64, 32] not in (root["tables/mean_tiles/obsm/spatial"][:] - 16).tolist()
    assert root.attrs["atlas_edge"]["unreadable_coords"] == [[64, 32]]


def test_what_is_done_is_left_out_the_next_time(scan: Path, tmp_path: Path) -> None:
    config, out = EmbedConfig(tissue=False, overview=False), tmp_path / "scan.spatialdata"
    embed_slide(scan, MeanEncoder(), out, config)
    said, plan = attributes_of(out), plan_of(MeanEncoder.spec, config, "")
    assert said is not None and not differences(said, plan)
    assert leave_out_done([(scan, out)], lambda _: plan, overwrite=False, re_embed=False)[1]
    other = plan_of(MeanEncoder.spec, EmbedConfig(tissue=False, overlap=8), "")
    with pytest.raises(UsageError, match="overlap 0, now 8"):
        leave_out_done([(scan, out)], lambda _: other, overwrite=False, re_embed=False)


def test_a_library_that_is_not_here_is_named(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_edge.system.hardware.installed_module", lambda name: None if name == "pyarrow" else name)
    with pytest.raises(RuntimeMissing, match=r"pyarrow is not installed"):
        embed_slide(scan, MeanEncoder(), tmp_path / "scan.spatialdata", EmbedConfig(tissue=False))
