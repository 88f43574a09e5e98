"""What a person looks at: the slide with its tiles, and where the embeddings are alike, in one picture."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from atlas_edge.embed.resume.journal import Journal
from atlas_edge.slides import Slide, TileGrid, TissueMask
from atlas_edge.slides.tissue.find import PICTURE_PX, small_picture
from atlas_edge.system.atomic import write_atomic

Colours = NDArray[np.uint8]
Place = Callable[[NDArray[np.int64]], tuple[float, float, float, float]]

_LEAST_PX = 480
_GAP_PX = 24
# Of the words: a share of the width, within bounds.
_TEXT_SHARE, _LEAST_TEXT_PX, _MOST_TEXT_PX = 1 / 70, 16, 32
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_TILE, _UNREADABLE, _REJECTED, _TISSUE = (0, 110, 60), (220, 30, 30), (240, 150, 0), (30, 80, 230)
_SKIPPED = (150, 150, 150)
_MOST_PIXELS = 2**24
_ROWS = 4096
# Of each component, what lies between becomes the whole range of a colour.
_PERCENTILES = (2, 98)
_QUALITY = 88


def write_overview(out: Path, slide: Slide, mask: TissueMask | None, grid: TileGrid, journal: Journal) -> Path:
    """Draw `NAME.overview.jpg` beside an output.

    Left (above, for a wide slide) the slide with the outlines of its tiles, unreadable ones crossed out and those that
    were not to be embedded grey, the edge of tissue, and what was taken for pen or a black border; right the first
    three principal components of the embeddings as red, green and blue, each tile at its place: tissue that the encoder
    takes for alike has one colour.

    Args:
        out: Output.
        slide: Open.
        mask: Where tissue is; None where nobody looked.
        grid: Its tiles.
        journal: Their embeddings.

    Returns:
        The file written.
    """
    picture = _large_enough(_thumbnail(slide, mask))
    height, width = picture.shape[:2]
    shrink = (slide.levels[0].width / width, slide.levels[0].height / height)

    def place(corner: NDArray[np.int64]) -> tuple[float, float, float, float]:
        x, y = corner[0] / shrink[0], corner[1] / shrink[1]
        return x, y, x + max(grid.size_x / shrink[0] - 1, 0), y + max(grid.size_y / shrink[1] - 1, 0)

    panels = [
        _tiles_panel(_with_mask(picture, mask), grid, set(journal.unreadable), place),
        _colours_panel(picture, grid, component_colours(journal, len(grid.coords)), set(journal.unreadable), place),
    ]
    buffer = io.BytesIO()
    _side_by_side(panels, _legend(grid, mask, journal)).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    path = overview_of(out)
    write_atomic(path, buffer.getvalue())
    return path


def overview_of(out: Path) -> Path:
    """Where the picture of an output lies."""
    return out.with_suffix(".overview.jpg")


def component_colours(journal: Journal, count: int) -> Colours:
    """`(count, 3)`: the first three principal components of the readable tiles' embeddings as red, green and blue.

    Oquab et al., DINOv2 (arXiv:2304.07193), figure 1, draw patch tokens so. Grey where a tile was unreadable, and where
    too few tiles tell components apart.
    """
    kept = np.ones(count, dtype=bool)
    kept[list(journal.unreadable)] = False
    colours = np.full((count, 3), 128, dtype=np.uint8)
    if kept.sum() < 4:
        return colours
    dim = journal.read(0, 1).shape[1]
    total, square = np.zeros(dim), np.zeros((dim, dim))
    for part in _parts(count):
        rows = journal.read(part.start, part.stop)[kept[part]].astype(np.float64)
        total += rows.sum(0)
        square += rows.T @ rows
    mean = total / kept.sum()
    values, vectors = np.linalg.eigh(square / kept.sum() - np.outer(mean, mean))
    axes = vectors[:, ::-1][:, :3]
    # An eigenvector has no sign: the largest entry is positive, so that two runs draw alike.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    found = np.concatenate([(journal.read(part.start, part.stop) - mean) @ axes for part in _parts(count)])
    low, high = np.percentile(found[kept], _PERCENTILES, axis=0)
    spread = np.where(values[::-1][:3] > 1e-12 * max(values[-1], 1e-300), high - low, np.inf)
    scaled = np.clip((found - low) / np.maximum(spread, 1e-12), 0, 1)
    flat = np.isinf(spread)
    scaled[:, flat] = 0.5
    colours[kept, : scaled.shape[1]] = np.rint(255 * scaled[kept])
    return colours


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]


def _thumbnail(slide: Slide, mask: TissueMask | None) -> Colours:
    """As fine as is worth a look; a level without a smaller one beside it is not read again for that."""
    full = slide.levels[0]
    mpp = max(full.width * slide.mpp_x, full.height * slide.mpp_y) / PICTURE_PX
    level = slide.levels[slide.level_for(mpp)]
    picture = None if mask is None else mask.picture
    if picture is not None and (level.width * level.height > _MOST_PIXELS or max(picture.shape) > PICTURE_PX // 2):
        return picture
    return small_picture(slide.thumbnail(mpp))


def _large_enough(picture: Colours) -> Colours:
    """Small slides are enlarged, so that the words below fit."""
    height, width = picture.shape[:2]
    times = -(-_LEAST_PX // max(height, width))
    return picture.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else picture


def _with_mask(picture: Colours, mask: TissueMask | None) -> Colours:
    if mask is None:
        return picture

    def spread(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
        size = picture.shape[1::-1]
        return np.asarray(Image.fromarray(part.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 0

    drawn = picture.copy()
    rejected, tissue = spread(mask.rejected), spread(mask.tissue)
    drawn[rejected] = (drawn[rejected] // 2 + np.array(_REJECTED) // 2).astype(np.uint8)
    # A pixel to either side.
    across, down = tissue[:, 1:] != tissue[:, :-1], tissue[1:] != tissue[:-1]
    for part in (drawn[:, 1:], drawn[:, :-1]):
        part[across] = _TISSUE
    for part in (drawn[1:], drawn[:-1]):
        part[down] = _TISSUE
    return drawn


def _tiles_panel(picture: Colours, grid: TileGrid, unreadable: set[int], place: Place) -> Image.Image:
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for corner in () if grid.skipped is None else grid.skipped.coords:
        draw.rectangle(place(corner), outline=_SKIPPED)
    for index, corner in enumerate(grid.coords):
        left, top, right, bottom = place(corner)
        draw.rectangle((left, top, right, bottom), outline=_UNREADABLE if index in unreadable else _TILE)
        if index in unreadable:
            draw.line((left, top, right, bottom), fill=_UNREADABLE)
            draw.line((left, bottom, right, top), fill=_UNREADABLE)
    return image


def _colours_panel(
    picture: Colours, grid: TileGrid, colours: Colours, unreadable: set[int], place: Place
) -> Image.Image:
    grey = Image.fromarray(picture).convert("L").point(lambda value: 160 + value * 95 // 255).convert("RGB")
    draw = ImageDraw.Draw(grey)
    for index, (corner, colour) in enumerate(zip(grid.coords, colours.tolist(), strict=True)):
        if index not in unreadable:
            left, top, right, bottom = place(corner)
            draw.rectangle((left, top, right, bottom), fill=tuple(colour))
    return grey


def _legend(grid: TileGrid, mask: TissueMask | None, journal: Journal) -> list[tuple[str, tuple[int, int, int]]]:
    tiles = len(grid.coords) - len(journal.unreadable)
    # Pillow's own font has no µ.
    lines = [
        (
            f"{tiles:,} tiles of {grid.tile_px} px at {grid.mpp:.3g} microns per pixel, of {grid.candidates:,} places",
            _TILE,
        )
    ]
    if grid.skipped_tiles:
        lines.append((f"{grid.skipped_tiles:,} tiles with tissue were not to be embedded", _SKIPPED))
    if journal.unreadable:
        lines.append((f"{len(journal.unreadable):,} tiles could not be read", _UNREADABLE))
    if mask is None:
        lines.append(("tissue was not looked for", _INK))
    else:
        lines.append(("edge of tissue" if mask.source is None else f"edge of tissue as {mask.source} says", _TISSUE))
    if mask is not None and mask.source is None and mask.rejected.any():
        lines.append((f"pen or black border: {mask.rejected_share:.1%} of what is no glass", _REJECTED))
    return [*lines, ("colours: first three principal components of the embeddings", _INK)]


def _side_by_side(panels: list[Image.Image], legend: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Next to one another, or above one another where slides are wide; words below."""
    width, height = panels[0].size
    step = (0, height + _GAP_PX) if width > 1.3 * height else (width + _GAP_PX, 0)
    size = (width + step[0], height + step[1])
    text_px = round(min(max(size[0] * _TEXT_SHARE, _LEAST_TEXT_PX), _MOST_TEXT_PX))
    line_px = text_px * 4 // 3
    image = Image.new("RGB", (size[0], size[1] + _GAP_PX + line_px * len(legend)), _PAPER)
    for number, panel in enumerate(panels):
        image.paste(panel, (step[0] * number, step[1] * number))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(text_px)
    for number, (text, colour) in enumerate(legend):
        top = size[1] + _GAP_PX // 2 + line_px * number
        draw.rectangle((8, top + text_px // 4, 8 + text_px * 3 // 4, top + text_px), fill=colour)
        draw.text((16 + text_px, top), text, fill=_INK, font=font)
    return image
