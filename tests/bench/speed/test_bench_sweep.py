import time

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.speed.sweep import Setting, Sweep, SweepPoint, settings_of, sweep
from atlas_edge.encoder import Capabilities
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
        self.setting, self.capabilities = setting, Capabilities(batch=setting.batch)
        Sleeper.open += 1

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls = -(-len(tiles) // self.setting.batch)
        time.sleep((0.004 * calls + 0.001 * len(tiles)) / self.setting.threads)
        return np.zeros((len(tiles), 1), np.float32)

    def close(self) -> None:
        Sleeper.open -= 1


@pytest.mark.usefixtures("clock")
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
    assert Sleeper.open == 0 and turns[7] == (8, 12)
    # What is far behind after two rounds gets no third; progress knows of it.
    assert len(slowest.rounds_tiles_per_s) == 2 and len(found.best.rounds_tiles_per_s) == 3
    assert turns[-1][0] == turns[-1][1] < 12
    assert found.lightest in found.points and found.lightest.as_good


def test_of_settings_as_good_the_lightest_is_named() -> None:
    def point(batch: int, streams: int, threads: int, *, as_good: bool) -> SweepPoint:
        setting = Setting(threads=threads, streams=streams, batch=batch)
        return SweepPoint(
            setting=setting, tiles_per_s=1.0, rounds_tiles_per_s=(1.0,), behind_best=None, as_good=as_good
        )

    best = point(32, 2, 2, as_good=True)
    points = (point(1, 1, 1, as_good=False), point(4, 2, 2, as_good=True), point(8, 1, 1, as_good=True), best)
    assert Sweep(points=points, best=best).lightest == points[2]


def test_streams_are_powers_of_two_up_to_the_threads() -> None:
    found = settings_of(threads=(1, 4), batches=(2,), streams=True)
    assert [(one.threads, one.streams) for one in found] == [(1, 1), (4, 1), (4, 2), (4, 4)]


def test_nothing_to_sweep_is_refused() -> None:
    with pytest.raises(UsageError):
        sweep(Sleeper, [], TILES)
