"""Tissue as a file says it: areas of QuPath with holes and parts, pictures, and what is wrong with either."""

import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.slides import plan_grid
from atlas_edge.slides.tissue.given import given_mask
from slides.test_tissue import Drawn

HEIGHT, WIDTH = 200, 300
Points = list[list[float]]


def slide(**options: Any) -> Drawn:
    return Drawn(np.full((HEIGHT, WIDTH, 3), 240.0), mpp=2.0, **options)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(*rings: Points, kind: str = "annotation", name: str | None = None) -> dict[str, Any]:
    about: dict[str, Any] = {"objectType": kind}
    if name is not None:
        about["classification"] = {"name": name, "color": [0, 0, 0]}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": list(rings)}, "properties": about}


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def tissue_of(tmp_path: Path, said: Any, **options: Any) -> NDArray[np.bool_]:
    path = tmp_path / "mask.geojson"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    mask = given_mask(path, slide(**options))
    assert (mask.source, mask.pixel_x, mask.pixel_y) == ("mask.geojson", 1, 1)
    return mask.tissue


def boxes(*inside: tuple[slice, slice]) -> NDArray[np.bool_]:
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for area in inside:
        expected[area] = True
    return expected


def test_parts_holes_and_collections(tmp_path: Path) -> None:
    multi = [[box(10, 10, 60, 60), box(20, 20, 50, 50)], [box(30, 30, 40, 40)]]
    nested = {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [box(100, 10, 150, 60)]}]}
    geometries = [{"type": "MultiPolygon", "coordinates": multi}, nested]
    expected = boxes(np.s_[10:60, 10:60])
    expected[20:50, 20:50] = False
    expected |= boxes(np.s_[30:40, 30:40], np.s_[10:60, 100:150])
    whole = {"type": "GeometryCollection", "geometries": geometries}
    listed = [{"type": "Feature", "geometry": part, "properties": None} for part in reversed(geometries)]
    for said in (whole, listed, collection(*listed)):
        assert np.array_equal(tissue_of(tmp_path, said), expected)


def test_holes_reach_past_their_outline_and_the_slide(tmp_path: Path) -> None:
    said = feature(box(-20, 10, 60, 60), box(40, 40, 90, 90), box(-10, 20, 10, 30), box(400, 20, 500, 30))
    expected = boxes(np.s_[10:60, 0:60]) & ~boxes(np.s_[40:60, 40:60], np.s_[20:30, 0:10])
    assert np.array_equal(tissue_of(tmp_path, said), expected)


def test_what_is_ignored_is_cut_out_and_cells_and_lines_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, "properties": {}}
    said = collection(
        feature(box(20, 20, 50, 50), name="Ignore*"),
        feature(box(10, 10, 60, 60), name="Tumor"),
        feature(box(200, 100, 210, 110), kind="cell"),
        line,
    )
    with caplog.at_level(logging.WARNING):
        found = tissue_of(tmp_path, said)
    assert np.array_equal(found, boxes(np.s_[10:60, 10:60]) & ~boxes(np.s_[20:50, 20:50]))
    assert "2 points, lines, tiles or cells are passed over" in caplog.text


def test_areas_reach_past_the_slide_and_count_from_what_was_scanned(tmp_path: Path) -> None:
    said = feature(box(-50, 150, 40, 500))
    assert np.array_equal(tissue_of(tmp_path, said), boxes(np.s_[150:, :40]))
    scanned = slide()
    scanned.bounds = (100, 20, 150, 150)
    assert np.array_equal(given_mask(tmp_path / "mask.geojson", scanned).tissue, boxes(np.s_[170:, 50:140]))


def goes_round(ring: Points) -> NDArray[np.bool_]:
    """Pixels whose middles see the outline turn by a whole circle."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    angle = np.zeros((HEIGHT, WIDTH))
    for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1], strict=True):
        ax, ay, bx, by = ax - x, ay - y, bx - x, by - y
        angle += np.arctan2(ax * by - ay * bx, ax * bx + ay * by)
    return np.abs(angle) > np.pi


@pytest.mark.parametrize("seed", range(3))
def test_any_outline_is_filled_to_the_pixel(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_edge.slides.tissue.given._CROSSINGS", 1000 if seed else 7)
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.uniform(0, 2 * np.pi, 40))[:: (-1) ** seed]
    far = rng.uniform(20, 95, 40)
    ring = np.stack([150 + far * np.cos(turn), 100 + far * np.sin(turn)], axis=1).tolist()
    assert np.array_equal(tissue_of(tmp_path, feature(ring)), goes_round(ring))


def test_an_outline_that_goes_to_and_fro_takes_no_more_memory_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_edge.slides.tissue.given._CROSSINGS", 2**14)
    x = np.linspace(10, 290, 10_000)
    teeth = np.stack([x, np.tile([10, 150], 5000)], axis=1).tolist()
    tracemalloc.start()
    found = tissue_of(tmp_path, feature([*teeth, [290, 190], [10, 190]]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[160:180, 20:280].all() and not found[:10].any()
    assert peak_bytes < 2e7, "one and a half million crossings at a time"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"a": 1}', "is no GeoJSON of areas"),
        ('"text"', "is no GeoJSON of areas"),
        ({"type": "Topology"}, "its type is 'Topology'"),
        (collection(), "holds no area"),
        (collection(feature(box(0, 0, 9, 9), kind="tile")), "holds no area"),
        (feature([[0, 0], [9, 9], [0, 0]]), "an outline has 2 points, expected 3"),
        (feature([[0, 0], [9, "9"], [9, 0]]), "pairs of numbers"),
        (feature([[0, 0], [9, 9], [9]]), "is no GeoJSON of areas"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 9], [9, 0]]]}', "lie nowhere"),
        (feature(box(1e300, 0, 9, 9)), "lie nowhere"),
        (feature([[10, 10], [90, 90], [90, 10], [10, 90]]), "an outline of 4 points crosses itself"),
        (feature([*box(10, 10, 90, 90)[:-1], *box(10, 10, 90, 90)]), "crosses itself"),
        (
            feature(box(5000, 10, 6000, 90)),
            "covers no pixel of the slide: x 5000 to 6000, y 10 to 90, the slide has 300",
        ),
        (
            collection(feature(box(10, 10, 60, 60)), feature(box(0, 0, 90, 90), name="Exclude")),
            "says that nothing of the slide is tissue",
        ),
    ],
)
def test_what_is_wrong_with_areas(tmp_path: Path, said: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        tissue_of(tmp_path, said)
    assert "mask.geojson" in str(raised.value) and "fix: " in str(raised.value)


def saved(tmp_path: Path, pixels: NDArray[Any], mode: str | None = None, name: str = "mask.png") -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
@pytest.mark.parametrize("mode", [None, "1", "P", "RGB", "RGBA", "I;16"])
def test_pictures_of_any_kind(tmp_path: Path, name: str, mode: str | None) -> None:
    inside = boxes(np.s_[40:120, 60:200])[::2, ::2]
    labels = (inside * 255).astype(np.uint8)
    if mode == "I;16":
        path = saved(tmp_path, inside.astype(np.uint16) * 300, None, name)
    else:
        path = saved(tmp_path, labels if mode else inside.astype(np.uint8), mode, name)
    mask = given_mask(path, slide())
    assert np.array_equal(mask.tissue, inside) and (mask.pixel_x, mask.pixel_y) == (2, 2)


def test_what_is_transparent_is_out(tmp_path: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH, 4), 255, dtype=np.uint8)
    pixels[:100, :, 3] = 0
    assert np.array_equal(given_mask(saved(tmp_path, pixels), slide()).tissue, boxes(np.s_[100:, :]))


def test_what_is_wrong_with_pictures(tmp_path: Path) -> None:
    for pixels, words in (
        (np.ones((200, 200), np.uint8), r"200 x 200 px, which is not the shape of the slide, 300 x 200 px"),
        (np.zeros((100, 150), np.uint8), "nothing of the slide is tissue"),
    ):
        with pytest.raises(InputError, match=words):
            given_mask(saved(tmp_path, pixels), slide())
    whole = saved(tmp_path, np.random.default_rng(0).integers(0, 255, (100, 150), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, words in (("cut.png", "no picture that can be read"), ("none.png", "is no file"), ("m.svg", "ends in")):
        if name == "m.svg":
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=words):
            given_mask(tmp_path / name, slide())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas_edge.slides.tissue.given._MOST_PIXELS", 1000)
        with pytest.raises(InputError, match="has 150 x 100 px, expected 1000 at most"):
            given_mask(saved(tmp_path, np.ones((100, 150), np.uint8)), slide())


def test_tiles_are_kept_by_their_share_of_the_mask(tmp_path: Path) -> None:
    path = tmp_path / "mask.geojson"
    path.write_text(json.dumps(feature(box(0, 0, 110, 50))))
    grid = plan_grid(slide(), given_mask(path, slide()), tile_px=50, mpp=2.0, min_tissue=0.15)
    assert grid.coords.tolist() == [[0, 0], [50, 0], [100, 0]]
    grid = plan_grid(slide(), given_mask(path, slide()), tile_px=50, mpp=2.0, min_tissue=0.25)
    assert grid.coords.tolist() == [[0, 0], [50, 0]]
