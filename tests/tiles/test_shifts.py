import numpy as np
import pytest

from atlas_edge.tiles.shifts import SCANNERS, as_scanner, blur, magnify, recompress, shift_colour, shift_hed

TILE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PURPLE = np.full((8, 8, 3), (120, 70, 150), np.uint8)
PINK = np.full((8, 8, 3), (235, 160, 200), np.uint8)


def test_identity_leaves_every_pixel() -> None:
    assert np.array_equal(shift_hed(TILE), TILE)
    assert np.array_equal(shift_colour(TILE, np.eye(3)), TILE)
    assert np.array_equal(as_scanner(TILE, "aperio-gt450", strength=0.0), TILE)


@pytest.mark.parametrize("scanner", SCANNERS)
def test_white_stays_white(scanner: str) -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    assert np.array_equal(as_scanner(white, scanner), white)
    assert np.array_equal(shift_hed(white, haematoxylin=2.0, eosin=0.5), white)


def test_more_haematoxylin_darkens_nuclei_more_than_stroma() -> None:
    def loss(tile: np.ndarray) -> float:
        return float(tile.mean() - shift_hed(tile, haematoxylin=1.3).mean())

    assert loss(PURPLE) > loss(PINK) >= 0


def test_a_density_by_hand() -> None:
    # Doubling every density squares the transmission: (127 + 1) / 256 = 1/2 -> 1/4 -> 63.
    tile = np.full((1, 1, 3), 127, np.uint8)
    assert shift_colour(tile, 2 * np.eye(3)).tolist() == [[[63, 63, 63]]]


def test_pure_haematoxylin_by_hand() -> None:
    # The stain's unit vector (0.65, 0.70, 0.29) at densities 0.3 and 0.6.
    weak, strong = (
        np.rint(256 * 10.0 ** -(density * np.array([0.65, 0.70, 0.29]) / 0.9982) - 1) for density in (0.3, 0.6)
    )
    found = shift_hed(weak.astype(np.uint8)[None, None], haematoxylin=2.0)
    assert np.abs(found[0, 0] - strong).max() <= 2


def test_the_measured_scanners_differ_as_the_scans_did() -> None:
    # Mean colour of the Aperio CS2 scan, and of the same region on the GT 450: much paler.
    tile = np.full((4, 4, 3), (209, 149, 171), np.uint8)
    assert np.abs(as_scanner(tile, "aperio-gt450")[0, 0].astype(int) - (230, 208, 221)).max() <= 6
    assert np.abs(as_scanner(tile, "nanozoomer-2ht")[0, 0].astype(int) - (203, 151, 193)).max() <= 6


def test_jpeg_and_blur_change_detail_and_keep_shape() -> None:
    for changed in (recompress(TILE, quality=30), blur(TILE, radius_px=1.5)):
        assert changed.shape == TILE.shape and changed.dtype == np.uint8
        assert not np.array_equal(changed, TILE)
    assert blur(TILE, radius_px=2).std() < TILE.std() / 2


@pytest.mark.parametrize("factor", [0.5, 0.71, 1.41, 2])
def test_magnified_a_tile_shows_its_middle_at_another_scale(factor: float) -> None:
    side = 64
    # Brightness rises along a line: at another scale it rises by another amount a pixel, and the middle stays.
    ramp = np.linspace(60, 190, side)
    tile = np.repeat(np.broadcast_to(ramp, (side, side))[..., None], 3, axis=2).astype(np.uint8)
    found = magnify(tile, factor=factor)
    assert found.shape == tile.shape and found.dtype == np.uint8
    row = found[side // 2, :, 0].astype(float)
    middle = slice(side // 2 - 8, side // 2 + 8)
    assert np.polyfit(np.arange(16), row[middle], 1)[0] == pytest.approx(factor * 130 / 63, rel=0.06)
    assert row[middle].mean() == pytest.approx(tile[side // 2, middle, 0].mean(), abs=2)
