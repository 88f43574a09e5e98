"""What lies beside embeddings: NAME.overview.jpg with tiles and colours at their places, NAME.geojson for QuPath."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_embed import MeanEncoder

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.output import overview
from atlas_edge.embed.output.geojson import write_geojson
from atlas_edge.embed.output.overview import component_colours
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.embed.resume.plan import differences, plan_of
from atlas_edge.errors import UsageError
from atlas_edge.slides import open_slide
from atlas_edge.slides.grid import TileGrid

tifffile = pytest.importorskip("tifffile")
h5py = pytest.importorskip("h5py")


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Left half violet, right half rose, a strip of glass below: 640 x 640 px at 0.5 µm."""
    pixels = np.full((640, 640, 3), 245, dtype=np.uint8)
    pixels[:512, :320], pixels[:512, 320:] = (120, 60, 160), (220, 120, 160)
    rng = np.random.default_rng(0)
    pixels[:512] = np.clip(pixels[:512] + rng.integers(-12, 13, (512, 640, 3)), 0, 255)
    path = tmp_path / "halves.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), resolution=(20000, 20000), resolutionunit="CENTIMETER")
    return path


def drawn(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_alike_tiles_have_one_colour_and_glass_has_none(halves: Path, tmp_path: Path) -> None:
    embed_slide(halves, MeanEncoder(), tmp_path / "out.h5", EmbedConfig())
    picture = drawn(tmp_path / "out.overview.jpg")
    side = (picture.shape[1] - overview._GAP_PX) // 2
    tiles, colours = picture[:side, :side], picture[:side, side + overview._GAP_PX :]
    at = side // 640 if side >= 640 else 1
    left, right, glass = colours[100 * at : 400 * at, 40 : side // 2 - 40], None, colours[side - 60 : side - 20, 40:]
    right = colours[100 * at : 400 * at, side // 2 + 40 : side - 40]
    # The first component is red: it parts the two halves, and what else there is, is noise.
    assert abs(left[..., 0].mean() - right[..., 0].mean()) > 150
    assert left[..., 0].std() < 40 and right[..., 0].std() < 40
    assert np.ptp(glass.mean((0, 1))) < 5 and glass.mean() > 230
    # Outlines are drawn where tiles are, and nowhere else.
    green = (tiles[..., 1] - tiles[..., 0] > 40) & (tiles[..., 1] > tiles[..., 2])
    assert green[: 512 * at].mean() > 0.02 and not green[side - 60 :].any()
    # So is the edge of tissue: across, where glass begins, and nowhere else.
    blue = (tiles[..., 2] - tiles[..., 0] > 100) & (tiles[..., 2] - tiles[..., 1] > 60)
    rows = np.flatnonzero(blue.mean(axis=1) > 0.5)
    assert len(rows) and abs(rows - 512 * at).max() <= 24 * at and not blue[: 480 * at].any()


def test_it_can_be_left_out_and_a_fault_of_it_keeps_the_embeddings(
    halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embed_slide(halves, MeanEncoder(), tmp_path / "none.h5", EmbedConfig(overview=False))
    assert not (tmp_path / "none.overview.jpg").exists()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(overview, "write_atomic", full)
    with caplog.at_level(logging.WARNING):
        result = embed_slide(halves, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(tissue=False))
    assert result.tiles == 400 and (tmp_path / "out.h5").is_file() and not (tmp_path / ".out.h5.work").exists()
    assert "not everything beside it was written" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr("atlas_edge.embed.slide.write_geojson", full)
    embed_slide(halves, MeanEncoder(), tmp_path / "both.h5", EmbedConfig(geojson=True))
    assert (tmp_path / "both.overview.jpg").is_file()


def test_unreadable_tiles_are_crossed_out_and_say_so(halves: Path, tmp_path: Path) -> None:
    slide = open_slide(halves)
    corners = np.array([[0, 0], [320, 0], [0, 320]], dtype=np.int64)
    grid = TileGrid(
        level=0, tile_px=320, mpp=0.5, scale_x=1, scale_y=1, size_x=320, size_y=320, coords=corners, candidates=4
    )
    journal = Journal(tmp_path / "out.h5", {}, 4)
    journal.append(np.ones((3, 4), np.float32), {1: "damaged"})
    journal.checkpoint()
    try:
        picture = drawn(overview.write_overview(tmp_path / "out.h5", slide, None, grid, journal))
    finally:
        journal.close()
        slide.close()
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    side = (picture.shape[1] - overview._GAP_PX) // 2
    assert red[: side // 2, side // 2 : side].sum() > side and not red[side // 2 : side, : side // 2].any()


@pytest.mark.parametrize(("count", "dim"), [(0, 8), (3, 8), (40, 2), (40, 8)])
def test_colours_of_few_tiles_and_of_few_components(tmp_path: Path, count: int, dim: int) -> None:
    rows = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    rows[:, 2:] = 5.0  # two components at most
    found = []
    for name in ("a", "b"):
        journal = Journal(tmp_path / f"{name}.h5", {}, dim)
        journal.append(rows, {})
        journal.checkpoint()
        found.append(component_colours(journal, count))
        journal.close()
    assert found[0].shape == (count, 3) and np.array_equal(*found)
    if count == 40:
        assert all(np.ptp(found[0][:, channel]) > 200 for channel in range(2))
    assert (found[0][:, 2] == 128).all()


def test_geojson_has_tissue_and_tiles_where_they_are(halves: Path, tmp_path: Path) -> None:
    contourpy = pytest.importorskip("contourpy")
    assert contourpy
    embed_slide(halves, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(geojson=True))
    collection = json.loads((tmp_path / "out.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    tissue, *tiles = collection["features"]
    assert tissue["properties"]["classification"]["name"] == "Tissue" and tissue["geometry"]["type"] == "MultiPolygon"
    rings = [np.array(ring) for polygon in tissue["geometry"]["coordinates"] for ring in polygon]
    # Closed; the tissue ends where the glass begins, to within a pixel of the mask (16 of the slide's).
    assert all(len(ring) >= 4 and (ring[0] == ring[-1]).all() for ring in rings)
    outer = max(rings, key=len)
    assert np.abs(outer.min(0) - (0, 0)).max() <= 16 and np.abs(outer.max(0) - (640, 512)).max() <= 16
    with h5py.File(tmp_path / "out.h5") as file:
        coords = file["coords"][:]
    assert [tile["properties"]["measurements"]["row"] for tile in tiles] == list(range(len(coords)))
    for tile, (x, y) in zip(tiles, coords.tolist(), strict=True):
        (ring,) = tile["geometry"]["coordinates"]
        assert ring == [[x, y], [x + 32, y], [x + 32, y + 32], [x, y + 32], [x, y]]
        assert tile["properties"]["objectType"] == "tile"


def test_geojson_of_unreadable_tiles_and_of_bounds(halves: Path, tmp_path: Path) -> None:
    slide = open_slide(halves)
    slide.bounds = (100, 50, 500, 500)
    corners = np.array([[100, 50], [420, 50]], dtype=np.int64)
    grid = TileGrid(
        level=0, tile_px=320, mpp=0.5, scale_x=1, scale_y=1, size_x=320, size_y=320, coords=corners, candidates=2
    )
    written = write_geojson(tmp_path / "out.h5", slide, None, grid, {0})
    slide.close()
    first, second = json.loads(written.read_text())["features"]
    assert first["properties"]["classification"]["name"] == "Unreadable" and "measurements" not in first["properties"]
    assert first["geometry"]["coordinates"][0][0] == [0, 0]
    assert second["properties"]["measurements"] == {"row": 0} and second["geometry"]["coordinates"][0][0] == [320, 0]


@pytest.mark.parametrize(("overlap", "tiles"), [(0, 400), (8, 27**2), (16, 39**2)])
def test_tiles_overlap_by_so_many_pixels(halves: Path, tmp_path: Path, overlap: int, tiles: int) -> None:
    config = EmbedConfig(tissue=False, overlap=overlap, magnification=20, overview=False, threads=2)
    result = embed_slide(halves, MeanEncoder(), tmp_path / "out.h5", config)
    assert (result.tiles, result.mpp) == (tiles, 0.5)
    with h5py.File(tmp_path / "out.h5") as file:
        coords, features = file["coords"][:], file["features"][:]
        assert file["coords"].attrs["overlap"] == overlap == file.attrs["overlap"]
    assert sorted(set(coords[:, 0].tolist())) == list(range(0, 640 - overlap, 32 - overlap))
    pixels = np.pad(tifffile.imread(halves), ((0, 32), (0, 32), (0, 0)), constant_values=255)
    expected = [pixels[y : y + 32, x : x + 32] for x, y in coords.tolist()]
    assert np.array_equal(features, MeanEncoder().encode(np.stack(expected)))


def test_scale_and_overlap_are_part_of_the_plan(halves: Path, tmp_path: Path) -> None:
    plans = [plan_of(MeanEncoder.spec, config, "") for config in (EmbedConfig(), EmbedConfig(overlap=8))]
    said = {name: value for name, value in plans[0].items() if name != "overlap"}  # written before there was one
    assert not differences(said, plans[0]) and differences(said, plans[1]) == ["overlap 0, now 8"]
    assert EmbedConfig(magnification=40).tile_mpp == 0.25
    with pytest.raises(UsageError, match=r"--magnification 40 is 0.25 µm per pixel, --tile-mpp says 0.5"):
        EmbedConfig(magnification=40, tile_mpp=0.5)
    with pytest.raises(UsageError, match="--overlap 32: tiles have 32 px"):
        embed_slide(halves, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(overlap=32))


# RFC 7946, of what QuPath reads: sections 3.1.6, 3.1.7, 3.2 and 3.3.
_POSITION = {"type": "array", "prefixItems": [{"type": "number"}] * 2, "items": False, "minItems": 2}
_POLYGON = {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 4, "items": _POSITION}}
_GEOMETRY = [
    {"properties": {"type": {"const": "Polygon"}, "coordinates": _POLYGON}},
    {"properties": {"type": {"const": "MultiPolygon"}, "coordinates": {"type": "array", "items": _POLYGON}}},
]
_ABOUT = {
    "type": "object",
    "required": ["objectType"],
    "properties": {
        "objectType": {"enum": ["annotation", "tile"]},
        "classification": {"required": ["name", "color"]},
        "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    "additionalProperties": False,
}
GEOJSON = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "geometry", "properties"],
                "properties": {
                    "type": {"const": "Feature"},
                    "geometry": {"required": ["type", "coordinates"], "oneOf": _GEOMETRY},
                    "properties": _ABOUT,
                },
            },
        },
    },
}


def test_geojson_fits_its_schema_and_can_be_given_back_as_a_mask(halves: Path, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    embed_slide(halves, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(geojson=True, overview=False))
    collection = json.loads((tmp_path / "out.geojson").read_text())
    checked = jsonschema.Draft202012Validator(GEOJSON)
    assert list(checked.iter_errors(collection)) == []
    collection["features"][1]["geometry"]["coordinates"][0][0].append("0")
    assert len(list(checked.iter_errors(collection))) == 1
    config = EmbedConfig(mask=tmp_path / "out.geojson", overview=False)
    with h5py.File(tmp_path / "out.h5") as file:
        found = set(map(tuple, file["coords"][:].tolist()))
    embed_slide(halves, MeanEncoder(), tmp_path / "again.h5", config)
    with h5py.File(tmp_path / "again.h5") as file:
        again = set(map(tuple, file["coords"][:].tolist()))
    # The outline is drawn through the middles of the mask's pixels: tiles that hardly touch tissue differ.
    assert len(found & again) > 0.95 * len(found | again)
