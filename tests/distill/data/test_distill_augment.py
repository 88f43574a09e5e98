import numpy as np
import pytest

from atlas_edge.distill.data.augment import Augmentation, draw_colour, fresh_view, recolour, stored_view

TILE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
STRONG = Augmentation.named("strong")


def test_a_view_is_a_function_of_tile_id_and_seed() -> None:
    views = [
        stored_view(TILE, tile_id, seed, STRONG, tile_px=32)
        for tile_id, seed in (("a", 1), ("a", 1), ("a", 2), ("b", 1))
    ]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[3])
    assert views[0].shape == (32, 32, 3)


def test_seed_0_is_the_plain_tile() -> None:
    assert stored_view(TILE, "a", 0, STRONG, tile_px=40) is TILE


def test_views_without_ranges_only_turn() -> None:
    view = stored_view(TILE, "a", 3, Augmentation.named("none"), tile_px=40)
    assert sorted(view.reshape(-1, 3).tolist()) == sorted(TILE.reshape(-1, 3).tolist())


def test_white_stays_white_and_colour_moves() -> None:
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    generator = np.random.default_rng(0)
    for _ in range(20):
        assert (recolour(white, draw_colour(generator, STRONG)) == 255).all()
    assert not np.array_equal(fresh_view(TILE, np.random.default_rng(1), STRONG), TILE)


def test_the_neutral_matrix_changes_nothing() -> None:
    assert np.abs(recolour(TILE, np.eye(3, dtype=np.float32) * np.float32(1.0 + 1e-7)).astype(int) - TILE).max() <= 1
    none = draw_colour(np.random.default_rng(0), Augmentation.named("none"))
    assert np.allclose(none, np.eye(3), atol=1e-6)


def test_stronger_ranges_move_further() -> None:
    def moved(name: str) -> float:
        ranges = Augmentation.named(name)  # type: ignore[arg-type]
        return float(
            np.mean([np.abs(draw_colour(np.random.default_rng(s), ranges) - np.eye(3)).mean() for s in range(200)])
        )

    assert pytest.approx(moved("geometry"), abs=1e-6) == 0
    assert moved("geometry") < moved("weak") < moved("strong")
