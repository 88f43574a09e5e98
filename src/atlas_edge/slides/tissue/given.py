"""Where tissue is, as a file says: areas that were drawn in QuPath, or a picture of them."""

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.slides.readers.foreign import one_line
from atlas_edge.slides.slide import Slide
from atlas_edge.slides.tissue.find import MASK_MPP, TissueMask
from atlas_edge.system.paths import printable

AREA_SUFFIXES = (".geojson", ".json")
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")

Ring = NDArray[np.float64]

_DRAWN_PIXELS, _MOST_PIXELS = 2**24, 2**26
_CROSSINGS = 2**20
_SAME_SHAPE = 0.01
_FARTHEST_PX = 1e9
_NO_ANNOTATIONS = ("tile", "cell", "detection")  # as QuPath calls them
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_WITH_ALPHA = ("P", "PA", "LA", "La", "RGBA", "RGBa")
_LOGGER = logging.getLogger(__name__)


def given_mask(path: Path, slide: Slide) -> TissueMask:
    """Read where tissue is.

    GeoJSON (RFC 7946) as QuPath writes it, in pixels of level 0 from the corner of what was scanned: polygons, also of
    several parts, with holes and in collections; together they are the tissue. Annotations of a class that begins
    with `Ignore`, or is `Exclude`, are cut out of it; tiles and cells are passed over.

    Or a PNG or TIFF that shows the whole slide at any scale: what is not black is tissue.

    Args:
        path: The file; its suffix says which.
        slide: Of which it speaks.

    Raises:
        InputError: It is neither, does not fit the slide, or says nothing.
    """
    suffix, name = path.suffix.lower(), printable(path)
    if not path.is_file():
        raise InputError(f"{name} is no file, expected a mask", hint="check the path of --mask")
    if suffix in AREA_SUFFIXES:
        tissue = _drawn(path, slide)
    elif suffix in PICTURE_SUFFIXES:
        tissue = _pictured(path, slide)
    else:
        forms = ", ".join((*AREA_SUFFIXES, *PICTURE_SUFFIXES))
        raise InputError(f"{name} ends in {suffix!r}, expected a mask as {forms}", hint="export it as GeoJSON")
    if not tissue.any():
        raise InputError(f"{name} says that nothing of the slide is tissue", hint="draw an area, or leave --mask out")
    height, width = tissue.shape
    return TissueMask(
        tissue=tissue,
        rejected=np.zeros_like(tissue),
        glass=None,
        saturation_threshold=None,
        pixel_x=slide.levels[0].width / width,
        pixel_y=slide.levels[0].height / height,
        picture=None,
        source=printable(path.name),
    )


@dataclass(slots=True)
class _Areas:
    """Polygons of a file, each a list of rings: its outline, then its holes."""

    inside: list[list[Ring]] = field(default_factory=list)
    cut_out: list[list[Ring]] = field(default_factory=list)
    passed_over: int = 0


def _drawn(path: Path, slide: Slide) -> NDArray[np.bool_]:
    full = slide.levels[0]
    um = np.array([full.width * slide.mpp_x, full.height * slide.mpp_y])
    # As fine as costs nothing: areas may be small.
    mpp = max(min((um.prod() / _DRAWN_PIXELS) ** 0.5, MASK_MPP), min(slide.mpp_x, slide.mpp_y))
    width, height = (max(round(float(length) / mpp), 1) for length in um)
    areas = _areas_of(path)
    corner = np.array((slide.bounds or (0, 0))[:2])
    shrink = np.array([full.width / width, full.height / height])
    tissue, cut_out = np.zeros((height, width), dtype=bool), np.zeros((height, width), dtype=bool)
    for onto, polygons in ((tissue, areas.inside), (cut_out, areas.cut_out)):
        for polygon in polygons:
            _fill(onto, [(ring + corner) / shrink for ring in polygon], path)
    if areas.passed_over:
        _LOGGER.warning("%s: %d points, lines, tiles or cells are passed over", path.name, areas.passed_over)
    if not areas.inside:
        raise InputError(f"{printable(path)} holds no area", hint="export annotations from QuPath as GeoJSON")
    if not tissue.any():
        points = np.concatenate([polygon[0] for polygon in areas.inside])
        low, high = points.min(axis=0), points.max(axis=0)
        raise InputError(
            f"{printable(path)} covers no pixel of the slide: x {low[0]:g} to {high[0]:g}, "
            f"y {low[1]:g} to {high[1]:g}, the slide has {full.width} x {full.height} px",
            hint="coordinates are pixels of level 0, as QuPath exports them",
        )
    return tissue & ~cut_out


def _areas_of(path: Path) -> _Areas:
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)} is no JSON: {one_line(error)}", hint="export it again") from error
    areas = _Areas()
    waiting: list[tuple[Any, dict[str, Any]]] = [(said, {})]
    while waiting:
        item, about = waiting.pop()
        try:
            waiting += _parts_of(item, about, areas)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(
                f"{printable(path)} is no GeoJSON of areas: {one_line(error)}", hint="export it from QuPath again"
            ) from error
    return areas


def _parts_of(item: Any, about: dict[str, Any], areas: _Areas) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What an object of GeoJSON is made of; its own areas go to `areas`."""
    if isinstance(item, list):  # older QuPath writes features without a collection
        yield from ((part, about) for part in item)
        return
    kind = item["type"]
    if kind in ("FeatureCollection", "GeometryCollection"):
        yield from ((part, about) for part in item["features" if kind[0] == "F" else "geometries"])
    elif kind == "Feature":
        about = item.get("properties") or {}
        if str(about.get("objectType", about.get("object_type"))).lower() in _NO_ANNOTATIONS:
            areas.passed_over += 1
        elif item["geometry"] is not None:
            yield item["geometry"], about
    elif kind in ("Polygon", "MultiPolygon"):
        polygons = [item["coordinates"]] if kind == "Polygon" else item["coordinates"]
        onto = areas.cut_out if _is_cut_out(about) else areas.inside
        onto += [[_ring(points) for points in polygon] for polygon in polygons if polygon]
    elif kind in _NO_AREA:
        areas.passed_over += 1
    else:
        raise ValueError(f"its type is {kind!r}")


def _is_cut_out(about: dict[str, Any]) -> bool:
    said = about.get("classification") or {}
    name = str(said.get("name", "") if isinstance(said, dict) else said).lower()
    return name.startswith("ignore") or name == "exclude"


def _ring(points: Any) -> Ring:
    found = np.asarray(points)
    if found.ndim != 2 or found.shape[1] < 2 or found.dtype.kind not in "iuf":
        raise ValueError("an outline is a list of pairs of numbers")
    ring = found[:, :2].astype(np.float64)
    if not (np.abs(ring) < _FARTHEST_PX).all():  # nor is NaN
        raise ValueError("an outline has points that lie nowhere")
    ring = ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring
    if len(ring) < 3:
        raise ValueError(f"an outline has {len(ring)} points, expected 3 at least")
    return ring


def _fill(onto: NDArray[np.bool_], rings: list[Ring], path: Path) -> None:
    """Set the pixels whose middles lie in a polygon, in pixels of `onto`."""
    place, inside = _covered(rings[0], onto.shape, path)
    corner = np.array([place[1].start, place[0].start])
    for hole in rings[1:]:
        # Each in a window of its own: fat has thousands of them.
        within, gap = _covered(hole - corner, inside.shape, path)
        inside[within] &= ~gap
    onto[place] |= inside


def _covered(ring: Ring, shape: tuple[int, ...], path: Path) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """A window of an array of this shape, and which of its pixels lie in a ring."""
    limits = np.array(shape[::-1])
    first = np.clip(np.floor(ring.min(axis=0)), 0, limits).astype(int)
    last = np.clip(np.ceil(ring.max(axis=0)), 0, limits).astype(int)
    place = np.s_[first[1] : last[1], first[0] : last[0]]
    if (first >= last).any():
        return place, np.zeros((last - first)[::-1], dtype=bool)
    return place, _inside(ring - first, (last - first)[::-1], path)


def _inside(ring: Ring, shape: NDArray[np.int64], path: Path) -> NDArray[np.bool_]:
    """Pixels whose middles a ring goes round: once, or it crosses itself.

    The winding number of a pixel is the sum of the edges that cross its row to the left of it, up as +1 and down as -1
    (Sunday, https://www.geomalgorithms.com/a03-_inclusion.html).
    """
    height, width = int(shape[0]), int(shape[1])
    x0, y0 = ring.T
    x1, y1 = np.roll(ring, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    counts = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64) - first
    ends = np.cumsum(counts)
    turns = np.zeros((height, width + 1), dtype=np.int32)
    # Some at a time: an outline that goes to and fro has a thousand times as many crossings as points.
    for start in range(0, int(ends[-1]), _CROSSINGS):
        crossing = np.arange(start, min(start + _CROSSINGS, int(ends[-1])))
        edge = np.searchsorted(ends, crossing, side="right")
        row = crossing - (ends - counts)[edge] + first[edge]
        along = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
        column = np.clip(np.ceil(x0[edge] + along * (x1 - x0)[edge] - 0.5), 0, width).astype(np.int64)
        np.add.at(turns, (row, column), np.sign(y1 - y0)[edge].astype(np.int32))
    winding = np.cumsum(turns[:, :width], axis=1, dtype=np.int32)
    if max(int(winding.max()), 0) - min(int(winding.min()), 0) > 1:
        raise InputError(
            f"{printable(path)}: an outline of {len(ring)} points crosses itself",
            hint="draw it again, or leave it out",
        )
    return np.asarray(winding != 0)


def _pictured(path: Path, slide: Slide) -> NDArray[np.bool_]:
    full, name = slide.levels[0], printable(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise _too_large(path, f"{width} x {height}")
            across, down = full.width / width, full.height / height
            if abs(across / down - 1) > _SAME_SHAPE + 1 / width + 1 / height:
                raise InputError(
                    f"{name} has {width} x {height} px, which is not the shape of the slide, "
                    f"{full.width} x {full.height} px",
                    hint="export a mask of the whole slide",
                )
            if image.mode in _WITH_ALPHA:
                rgba = np.asarray(image.convert("RGBA"))
                return np.asarray(rgba[..., :3].any(axis=2) & (rgba[..., 3] > 0))
            pixels = np.asarray(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more") from error
    except Exception as error:  # of a damaged file Pillow raises almost anything
        raise InputError(f"{name} is no picture that can be read: {one_line(error)}", hint="save it again") from error
    return np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0)


def _too_large(path: Path, size: str) -> InputError:
    return InputError(
        f"{printable(path)} has {size} px, expected {_MOST_PIXELS} at most in all", hint="save it at 8 µm per pixel"
    )
