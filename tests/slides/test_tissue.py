"""What is tissue on slides of many stains, glasses and pens, drawn at the scale of the mask or near it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.slides import Level, Slide, TissueMask, find_tissue

pytest.importorskip("scipy")

STAINS = {
    "eosin and haematoxylin": (200, 110, 170), "pale eosin": (236, 226, 234), "faded": (226, 216, 222),
    "DAB": (140, 95, 60), "strong DAB": (42, 30, 25), "melanin": (40, 28, 25), "silver": (120, 118, 116),
    "anthracosis": (60, 55, 58), "Giemsa": (80, 80, 160), "Alcian blue": (90, 160, 200), "aniline blue": (60, 90, 170),
    "light green": (60, 140, 100), "Luxol fast blue": (50, 110, 150), "Prussian blue": (40, 80, 140),
    "teal": (60, 150, 150), "green chromogen": (60, 140, 80),
}  # fmt: skip
GLASSES = {"white": (243, 242, 244), "warm": (244, 238, 224), "grey": (228, 228, 230), "bluish": (230, 236, 244)}
INKS = {
    "red": (200, 30, 40), "dark red": (140, 20, 30), "magenta": (200, 30, 150), "orange": (230, 120, 30),
    "purple": (110, 40, 150), "blue": (40, 60, 180), "light blue": (60, 140, 220), "green": (30, 130, 60),
    "yellow": (240, 220, 60), "black": (25, 25, 28), "grey": (90, 90, 95),
}  # fmt: skip
SIDE = 300
Y, X = np.mgrid[:SIDE, :SIDE]
Picture = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Drawn(Slide):
    """A slide in memory; `gaps` were not scanned, `broken` levels cannot be read."""

    def __init__(self, *levels: Picture, mpp: float = 8.0, gaps: Mask | None = None, broken: tuple[int, ...] = ()):
        self.path, self.mpp_x, self.mpp_y = Path("drawn.svs"), mpp, mpp
        self._images = [np.clip(np.rint(level), 0, 255).astype(np.uint8) for level in levels]
        self._gaps, self._broken = gaps, broken
        full = levels[0].shape
        self.levels = tuple(
            Level(
                width=level.shape[1],
                height=level.shape[0],
                downsample_x=full[1] / level.shape[1],
                downsample_y=full[0] / level.shape[0],
            )
            for level in levels
        )

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        if level in self._broken:
            raise InputError("broken")
        return self._images[level][top : top + height, left : left + width]

    def read_with_gaps(self, level: int, left: int, top: int, width: int, height: int) -> tuple[Any, Any]:
        pixels, gaps = super().read_with_gaps(level, left, top, width, height)
        return pixels, gaps if self._gaps is None else self._gaps[top : top + height, left : left + width]

    def close(self) -> None:
        pass


def glass(colour: tuple[int, int, int] = GLASSES["white"], *, spread: float = 0.6) -> Picture:
    return np.random.default_rng(0).normal(0, spread, (SIDE, SIDE, 3)) + np.array(colour)


def piece(x: float = 150, y: float = 180, radius: float = 75) -> Mask:
    angle = np.arctan2(Y - y, X - x)
    lobes = 0.1 * np.cos(3 * angle + 1) + 0.07 * np.cos(5 * angle) + 0.05 * np.cos(8 * angle + 2)
    return np.asarray(np.hypot(X - x, Y - y) < radius * (1 + lobes))


def stained(colour: tuple[int, int, int], *, textured: bool) -> Picture:
    """Tissue in light that came through white glass, its density uneven or not."""
    if not textured:
        return np.zeros((SIDE, SIDE, 3)) + colour
    rng, density = np.random.default_rng(1), np.ones((SIDE, SIDE))
    for scale, weight in ((1, 0.11), (3, 0.13), (12, 0.13)):
        noise = rng.normal(size=(SIDE // scale + 1, SIDE // scale + 1)).astype(np.float32)
        density += weight * np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.asarray(243 * (np.array(colour) / 243.0) ** np.clip(density, 0.15, 2.2)[..., None])


@pytest.mark.parametrize("textured", [False, True], ids=["flat", "textured"])
@pytest.mark.parametrize("stain", STAINS)
def test_stains_are_tissue_on_any_glass(stain: str, textured: bool) -> None:
    where, tissue = piece(), stained(STAINS[stain], textured=textured)
    for name, colour in GLASSES.items():
        image = glass(colour)
        image[where] = (tissue * np.array(colour) / 243 + glass((0, 0, 0)))[where]
        mask = find_tissue(Drawn(image))
        assert mask.tissue[where].mean() > 0.9, name
        assert mask.tissue[~where].mean() < 0.02, name


STROKES = {
    "bar": (Y > 30) & (Y < 55) & (X > 20) & (X < 280),
    "curve": np.abs(np.hypot(X - 100, Y - 100) - 70) < 12,
    "across": np.abs(Y - 180 - 0.3 * (X - 150)) < 12,
}


@pytest.mark.parametrize("stroke", STROKES)
@pytest.mark.parametrize("ink", INKS)
def test_strokes_of_pen_are_not(ink: str, stroke: str) -> None:
    where, inked = piece(), STROKES[stroke]
    image = glass()
    image[where] = stained(STAINS["eosin and haematoxylin"], textured=True)[where]
    image[inked] = (image * np.array(INKS[ink]) / 243)[inked]
    mask = find_tissue(Drawn(image))
    assert mask.tissue[inked & ~where].mean() < 0.02
    assert mask.tissue[where & ~inked].mean() > 0.9  # the rim of the stroke goes with it
    if stroke == "across" and ink not in ("grey", "yellow"):  # through which the tissue shows
        assert mask.tissue[inked & where].mean() < 0.05


def test_rejection_of_pen_is_told_and_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    image = glass()
    image[piece()] = STAINS["DAB"]
    image[STROKES["bar"]] = INKS["green"]
    with caplog.at_level(logging.WARNING):
        assert find_tissue(Drawn(image)).rejected_share > 0.2
    assert "--no-pen" in caplog.text
    caplog.clear()
    mask = find_tissue(Drawn(image), reject_pen=False)
    assert mask.tissue[STROKES["bar"]].all()
    assert not mask.rejected.any()
    assert not caplog.text


def test_a_black_border_is_no_tissue_and_black_tissue_is() -> None:
    image = glass()
    image[:40] = image[:, 280:] = 5
    image[piece()] = STAINS["melanin"]
    mask = find_tissue(Drawn(image))
    assert not mask.tissue[:40].any()
    assert not mask.tissue[:, 280:].any()
    assert mask.tissue[piece()].all()


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("colour", GLASSES.values(), ids=GLASSES)
def test_a_blank_slide_has_no_tissue(colour: tuple[int, int, int], spread: float) -> None:
    assert find_tissue(Drawn(glass(colour, spread=spread))).area_share == 0


def test_specks_edges_of_a_coverslip_and_dust_are_no_tissue() -> None:
    image = glass()
    image[::50, ::50] = (200, 110, 170)
    image[:, 100:103] = 118
    image[200:204, 200:204] = (70, 70, 70)
    assert find_tissue(Drawn(image)).area_share == 0


def test_thin_septa_of_fat_are_tissue() -> None:
    # Lines of 3 µm around cells of 80 µm, at 1 µm per pixel.
    y, x = np.mgrid[:1600, :1600]
    image = np.random.default_rng(0).normal(0, 1, (1600, 1600, 3)) + GLASSES["white"]
    fat = ((x % 80 < 3) | (y % 80 < 3)) & (np.hypot(x - 800, y - 800) < 600)
    image[fat] = (210, 120, 175)
    mask = find_tissue(Drawn(image, mpp=1.0))
    assert mask.tissue.shape == (200, 200)
    assert mask.tissue[75:125, 75:125].mean() > 0.15


@pytest.mark.parametrize("told", [True, False], ids=["told by the reader", "white"])
def test_what_was_not_scanned_is_neither_glass_nor_tissue(told: bool) -> None:
    frame = (np.abs(X - 150) < 60) & (np.abs(Y - 150) < 60)
    image, where = glass((244, 240, 232)), piece(150, 150, 30)
    image[where] = STAINS["pale eosin"]
    image[~frame] = 255
    mask = find_tissue(Drawn(image, gaps=~frame if told else None))
    assert mask.tissue[where].mean() > 0.9
    assert mask.tissue[frame & ~where].mean() < 0.01
    assert not mask.tissue[~frame].any()


def test_tissue_all_over_is_tissue() -> None:
    assert find_tissue(Drawn(stained(STAINS["DAB"], textured=True))).area_share > 0.99


def test_the_mask_has_its_scale_whatever_the_levels() -> None:
    image = glass()
    image[piece()] = STAINS["DAB"]
    fine = np.repeat(np.repeat(image, 3, axis=0), 3, axis=1)
    masks = [find_tissue(Drawn(fine, mpp=mpp)) for mpp in (8 / 3, 2.3)]
    assert [mask.tissue.shape for mask in masks] == [(300, 300), (259, 259)]
    shares = [mask.area_share for mask in masks]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_finer_levels_stand_in_for_damaged_ones() -> None:
    image = glass()
    image[piece()] = STAINS["DAB"]
    fine = np.repeat(np.repeat(image, 4, axis=0), 4, axis=1)
    whole, damaged = (Drawn(fine, fine[::2, ::2], image, mpp=2.0, broken=broken) for broken in ((), (2,)))
    masks: list[TissueMask] = [find_tissue(slide) for slide in (whole, damaged)]
    assert masks[1].area_share == pytest.approx(masks[0].area_share, abs=0.01)
    assert damaged.level_for(8.0) == 1
    with pytest.raises(InputError, match="cannot be read anywhere"):
        find_tissue(Drawn(fine, image, mpp=2.0, broken=(0, 1)))


DOT = np.hypot(X - 60, Y - 50) < 14


@pytest.mark.parametrize(
    ("stain", "tissue", "rejected", "kept"),
    [
        ("he", "eosin and haematoxylin", ("green", "light blue", "blue", "yellow"), ()),
        ("he", "Giemsa", ("green", "light blue"), ()),
        ("ihc", "DAB", ("green",), ()),
        ("special", "aniline blue", (), ("green", "blue", "red", "orange")),
        ("dark", "silver", (), ("black", "grey")),
    ],
)
@pytest.mark.parametrize("shape", ["dot", "bar"])
def test_a_stain_that_is_known_says_what_is_pen(
    stain: Any, tissue: str, rejected: tuple[str, ...], kept: tuple[str, ...], shape: str
) -> None:
    where = piece(150, 200, 60)
    for ink in (*rejected, *kept):
        image, inked = glass(), DOT if shape == "dot" else STROKES["bar"]
        image[where] = stained(STAINS[tissue], textured=True)[where]
        image[inked] = INKS[ink]
        mask = find_tissue(Drawn(image), stain=stain)
        assert mask.tissue[where].mean() > 0.9, ink
        assert mask.tissue[inked].mean() < 0.02 if ink in rejected else mask.tissue[inked].mean() > 0.9, ink


@pytest.mark.parametrize(
    ("stain", "names"),
    [
        ("he", ("eosin and haematoxylin", "pale eosin", "faded", "Giemsa")),
        ("ihc", ("DAB", "strong DAB", "eosin and haematoxylin", "pale eosin", "Giemsa")),
        ("special", tuple(STAINS)),
        ("dark", ("silver", "melanin", "anthracosis", "strong DAB")),
    ],
)
def test_a_stain_that_is_known_takes_none_of_its_tissue(stain: Any, names: tuple[str, ...]) -> None:
    for name in names:
        image, where = glass(), piece()
        image[where] = stained(STAINS[name], textured=True)[where]
        plain, mask = (find_tissue(Drawn(image), stain=known).tissue for known in (None, stain))
        assert not (plain & ~mask)[where].any() and mask[~where].mean() < 0.02, name


def test_black_tissue_along_the_rim_stays_where_the_stain_is_dark() -> None:
    image = glass()
    image[:40] = stained(STAINS["melanin"], textured=False)[:40] * 0.4
    assert not find_tissue(Drawn(image)).tissue[:38].any()
    assert find_tissue(Drawn(image), stain="dark").tissue[:38].all()
