"""Is what was written for a slide right: features against a reference, coordinates on a thumbnail, two scanners."""

import dataclasses
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from atlas_edge.bench.accuracy.agreement import Agreement, embedding_agreement, tile_cosines, unit_rows
from atlas_edge.bench.accuracy.plism import PlismBench, Scan, plism_bench, scan_pairs
from atlas_edge.bench.judge.budgets import Budgets, judged_cosine, run_gate
from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.bench.options import Budget
from atlas_edge.cli import require_module
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.slides import Slide, TileGrid, TileReader, open_slide, plan_grid
from atlas_edge.slides.colour import to_srgb
from atlas_edge.system.paths import matches, printable

_THUMBNAIL_PX = 1200
_COLOURS = ((0, 60, 255), (255, 140, 0))
_SAME_PLACE_UM = 2.0
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFeatures:
    """A file that `atlas-embed` wrote.

    Attributes:
        path: The file.
        features: `(N, D)` float32.
        coords: `(N, 2)` int64, level-0 pixels.
        attributes: Of the file: slide, mpp, level, tile_px, slide_mpp, ….
    """

    path: Path
    features: NDArray[np.float32]
    coords: NDArray[np.int64]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideCheck:
    """Features of slides compared with a reference on the same tiles.

    Attributes:
        tiles: Compared tiles of each file.
        cosine_median: Median cosine of each file.
        agreement: Over all of them.
        verdict: Of the 1st percentile of the cosine; None without a budget.
        advice: What would settle or mend it; empty without a budget and after PASS.
        outlines: Pictures that were drawn.
    """

    tiles: dict[str, int]
    cosine_median: dict[str, float]
    agreement: Agreement
    verdict: Verdict | None
    advice: str
    outlines: tuple[str, ...]


def features_of(given: Sequence[Path]) -> list[Path]:
    """Files that were named, by name or by pattern (no Windows shell expands one).

    Raises:
        InputError: One that is not there, or a pattern that nothing matches.
    """
    found: list[Path] = []
    for path in given:
        matching = [path] if path.exists() else matches(path) if glob.has_magic(str(path)) else []
        if not matching:
            raise InputError(f"{printable(path)} does not exist", hint="give HDF5 files that atlas-embed wrote")
        found += matching
    return found


def read_features(path: Path) -> SlideFeatures:
    """Read HDF5 features of `atlas-embed`.

    Raises:
        InputError: Another file, or attributes that do not fit its slide.
    """
    require_module("h5py", extra="slides")
    import h5py

    try:
        with h5py.File(path) as file:
            return SlideFeatures(
                path=path, features=file["features"][:], coords=file["coords"][:], attributes=dict(file.attrs)
            )
    except (OSError, KeyError) as error:
        raise InputError(f"{path} holds no features of atlas-embed: {error}", hint="give its HDF5 file") from error


def check_slides(
    files: Sequence[SlideFeatures],
    slides: Path,
    reference: Encoder,
    *,
    most_tiles: int,
    min_cosine: float | None,
    outlines: Path | None,
    seed: int = 0,
) -> SlideCheck:
    """Embed a sample of each file's tiles with the reference, read from the slide anew, and compare.

    Args:
        files: See `read_features`.
        slides: Folder where the slides lie under their names.
        reference: Full-precision encoder.
        most_tiles: Sample of each slide.
        min_cosine: Budget on the lower end of the cosine's 1st percentile.
        outlines: Folder for thumbnails with the tiles' outlines.
        seed: Seed of the sample.

    Raises:
        InputError: A slide is not there, or is not the one that was embedded.
    """
    theirs, ours, slide_of, medians, counts, drawn = [], [], [], {}, {}, []
    for file in files:
        says_itself = file.attributes.get("slide_mpp_source", "slide") == "slide"
        overridden = None if says_itself else file.attributes["slide_mpp"]
        slide = open_slide(slides / str(file.attributes["slide"]), mpp=overridden, override=True)
        try:
            grid = _grid_of(file, slide)
            rows = np.random.default_rng(seed).permutation(len(file.coords))[:most_tiles]
            rows.sort()
            colours = to_srgb(slide.icc_profile, slide.path) if _is_srgb(file) and slide.icc_profile else None
            expected = _embed(reference, TileReader(slide, grid, colours), file.coords[rows])
            if outlines is not None:
                drawn.append(str(draw_outlines(slide, grid, outlines / f"{file.path.stem}.png")))
        finally:
            slide.close()
        cosines = np.einsum("nd,nd->n", unit_rows(expected), unit_rows(file.features[rows]))
        medians[file.path.name], counts[file.path.name] = float(np.median(cosines)), len(rows)
        theirs.append(expected)
        ours.append(file.features[rows])
        slide_of += [str(file.attributes["slide"])] * len(rows)
    pair = np.concatenate(theirs), np.concatenate(ours)
    agreement = embedding_agreement(*pair, groups=np.unique(slide_of, return_inverse=True)[1])
    verdict, advice = None, ""
    if min_cosine is not None:
        figure = judged_cosine(agreement, tile_cosines(*pair).tolist())
        (check,) = run_gate(Budgets(default=Budget(min_cosine=min_cosine)), {"features": [figure]}).checks
        verdict, advice = check.verdict, check.advice
    return SlideCheck(
        tiles=counts,
        cosine_median=medians,
        agreement=agreement,
        verdict=verdict,
        advice=advice,
        outlines=tuple(drawn),
    )


def compare_scans(one: SlideFeatures, two: SlideFeatures) -> PlismBench:
    """Compare two scans of one region whose corners lie at the same place, tile by tile (see `plism_bench`).

    Raises:
        InputError: Fewer than two tiles lie at the same place on both.
    """
    places = [file.coords * _mpps(file) for file in (one, two)]
    distance = np.abs(places[0][:, None] - places[1][None]).max(axis=2)
    pairs = np.argwhere(distance <= _SAME_PLACE_UM)
    features = np.concatenate([one.features[pairs[:, 0]], two.features[pairs[:, 1]]])
    names = [str(number) for number in range(len(pairs))]
    scans = [Scan("one")] * len(pairs) + [Scan("two")] * len(pairs)
    compared = scan_pairs(features, names + names, scans) if len(pairs) >= 2 else None
    if compared is None:
        raise InputError(
            f"{one.path.name} and {two.path.name} share {len(pairs)} tiles within {_SAME_PLACE_UM} µm",
            hint="embed both with --no-tissue and the same --tile-mpp",
        )
    return plism_bench(compared)


def _mpps(file: SlideFeatures) -> NDArray[np.float64]:
    x = float(file.attributes["slide_mpp"])
    return np.array([x, float(file.attributes.get("slide_mpp_y", x))])


def draw_outlines(slide: Slide, grid: TileGrid, path: Path) -> Path:
    """Draw the tiles of a grid on a thumbnail of its slide, in two colours by turns.

    Returns:
        `path`, a PNG.
    """
    size = slide.levels[0]
    pixels = slide.thumbnail(slide.mpp_x * max(size.width, size.height) / _THUMBNAIL_PX)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    scale_x, scale_y = pixels.shape[1] / size.width, pixels.shape[0] / size.height
    for x, y in grid.coords.tolist():
        odd = (round(x / grid.size_x) + round(y / grid.size_y)) % 2
        corners = (x * scale_x, y * scale_y, (x + grid.size_x) * scale_x - 1, (y + grid.size_y) * scale_y - 1)
        pen.rectangle(corners, outline=_COLOURS[odd])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def _grid_of(file: SlideFeatures, slide: Slide) -> TileGrid:
    about = file.attributes
    # A level that was damaged when the slide was embedded is passed over here, too.
    slide.unusable_levels.update(range(int(about["level"]) + 1, len(slide.levels)))
    grid = plan_grid(slide, None, tile_px=int(about["tile_px"]), mpp=float(about["mpp"]), rim=True)
    level = slide.levels[0]
    said = (int(about["level"]), int(about["slide_width"]), int(about["slide_height"]), float(about["slide_mpp"]))
    found = (grid.level, level.width, level.height, slide.mpp_x)
    inside = (file.coords >= 0).all() and (file.coords < (level.width, level.height)).all()
    if said != found or not inside:
        raise InputError(
            f"{file.path.name} says level, width, height, µm per pixel {said}, {slide.path.name} has {found}",
            hint="give the slide that was embedded, or embed it again",
        )
    return dataclasses.replace(grid, coords=file.coords)


def _is_srgb(file: SlideFeatures) -> bool:
    """Whether the slide's ICC profile was applied; parquet keeps text."""
    return str(file.attributes.get("icc", False)) == "True"


def _embed(encoder: Encoder, reader: TileReader, coords: NDArray[np.int64]) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(coords), _BATCH):
        read = reader.read(coords[start : start + _BATCH])
        if read.unreadable:
            raise InputError(next(iter(read.unreadable.values())), hint="copy the slide again")
        parts.append(encoder.encode(read.pixels))
    return np.concatenate(parts)
