"""Focus of tiles: the variance of the Laplacian, by hand and on blurred tissue."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from atlas_edge.slides.focus import focus_of


def test_by_hand() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (5, 48, 40, 3), dtype=np.uint8)
    expected = []
    for tile in tiles:
        green, values = tile[..., 1].astype(float), []
        for y in range(1, 47, 19):
            for x in range(1, 39):
                four = green[y - 1, x] + green[y + 1, x] + green[y, x - 1] + green[y, x + 1]
                values.append(four - 4 * green[y, x])
        expected.append(np.var(values))
    found = focus_of(tiles)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # A tile's focus does not depend on those beside it.
    assert np.array_equal(np.concatenate([focus_of(tile[None]) for tile in tiles]), found)


def test_glass_has_none_and_the_largest_contrast_fits() -> None:
    assert focus_of(np.full((2, 224, 224, 3), 243, np.uint8)).tolist() == [0, 0]
    chequered = (np.indices((224, 224)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert focus_of(np.repeat(chequered[None, ..., None], 3, axis=3))[0] == pytest.approx(1020**2)


def test_blocks_of_a_jpeg_do_not_lie_alike() -> None:
    # Sharp in the first line of each block of 8 x 8 only.
    tile = np.full((1, 224, 224, 3), 120, np.uint8)
    tile[:, ::8, ::2] = 160
    others = np.roll(tile, 3, axis=1)
    assert 0 < focus_of(tile)[0] < 4 * focus_of(others)[0] and focus_of(others)[0] < 4 * focus_of(tile)[0]


def test_blur_lowers_it() -> None:
    tile = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    sharp = tile.filter(ImageFilter.GaussianBlur(0.8))
    found = focus_of(np.stack([sharp.filter(ImageFilter.GaussianBlur(blur)) for blur in (0, 0.5, 1, 2, 4)]))
    assert (np.diff(found) < 0).all()
    assert found[0] > 20 * found[3]
