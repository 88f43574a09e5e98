import time

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.sweep import Setting, settings_of, sweep
from atlas_edge.errors import UsageError
from atlas_edge.spec import EncoderSpec

TILES = np.zeros((8, 4, 4, 3), np.uint8)


class Sleeper:
    """Takes 2 ms a call and 1 ms a tile, halved by two threads: its best setting is known."""

    runtime = "sleep"
    spec = EncoderSpec(
        name="s", architecture="none", embed_dim=1, tile_px=4, mean=(0, 0, 0), std=(1, 1, 1), pooling="cls"
    )
    open = 0

    def __init__(self, setting: Setting) -> None:
        self.setting, self.batch = setting, setting.batch
        Sleeper.open += 1

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls = -(-len(tiles) // self.batch)
        time.sleep((0.004 * calls + 0.001 * len(tiles)) / self.setting.threads)
        return np.zeros((len(tiles), 1), np.float32)

    def close(self) -> None:
        Sleeper.open -= 1


def test_the_best_setting_is_named_and_everything_is_closed() -> None:
    turns: list[tuple[int, int]] = []
    found = sweep(
        Sleeper,
        settings_of(threads=(1, 2), batches=(1, 8)),
        TILES,
        rounds=3,
        block_seconds=0.02,
        progress=lambda done, total: turns.append((done, total)),
    )
    assert found.best.setting == Setting(threads=2, streams=1, batch=8)
    assert found.best.setting.words == "batch 8, 1 stream, 2 threads"
    assert found.best.behind_best is None and found.best.as_good
    slowest = min(found.points, key=lambda point: point.tiles_per_s)
    assert slowest.setting == Setting(threads=1, streams=1, batch=1)
    assert slowest.behind_best is not None and slowest.behind_best.estimate > 2 and not slowest.as_good
    assert turns[-1] == (12, 12) and Sleeper.open == 0
    assert all(len(point.rounds_tiles_per_s) == 3 for point in found.points)


def test_streams_are_powers_of_two_up_to_the_threads() -> None:
    found = settings_of(threads=(1, 4), batches=(2,), streams=True)
    assert [(one.threads, one.streams) for one in found] == [(1, 1), (4, 1), (4, 2), (4, 4)]


def test_nothing_to_sweep_is_refused() -> None:
    with pytest.raises(UsageError):
        sweep(Sleeper, [], TILES)
