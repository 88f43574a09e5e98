import time

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.interval import geometric_mean_interval
from atlas_edge.bench.speed.timing import _turns, paired_speed
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import UsageError
from atlas_edge.spec import EncoderSpec

TILES = np.zeros((8, 4, 4, 3), np.uint8)


class SlowEncoder:
    """Sleeps a fixed time a tile: its true speed is known."""

    runtime = "sleep"
    capabilities = Capabilities()
    spec = EncoderSpec(
        name="slow", architecture="none", embed_dim=2, tile_px=4, mean=(0, 0, 0), std=(1, 1, 1), pooling="cls"
    )

    def __init__(self, ms_per_tile: float) -> None:
        self.ms_per_tile = ms_per_tile

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(self.ms_per_tile * len(tiles) / 1e3)
        return np.zeros((len(tiles), 2), np.float32)

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("clock")
def test_a_known_ratio_is_found() -> None:
    report = paired_speed(
        {"reference": SlowEncoder(6.0), "fast": SlowEncoder(2.0)},
        TILES,
        reference="reference",
        batch=4,
        rounds=6,
        block_seconds=0.06,
    )
    fast, reference = report.encoders["fast"], report.encoders["reference"]
    assert reference.throughput_ratio is None and reference.latency_ratio is None
    assert fast.throughput_ratio is not None and fast.throughput_ratio.estimate == pytest.approx(3.0)
    assert fast.latency_ratio is not None and fast.latency_ratio.estimate == pytest.approx(3.0)
    rounds = (fast.throughput.rounds_tiles_per_s, reference.throughput.rounds_tiles_per_s)
    by_hand = geometric_mean_interval(np.array(rounds[0]) / np.array(rounds[1]))
    assert fast.throughput_ratio.low == pytest.approx(by_hand.low, rel=1e-3)
    assert reference.throughput.tiles_per_s == pytest.approx(1000 / 6)
    latency = reference.latency
    quantiles = [float(value) for value in np.percentile(latency.samples_ms, [50, 90, 95, 99])]
    assert [latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms] == pytest.approx(quantiles, abs=1e-3)
    assert latency.max_ms == pytest.approx(max(latency.samples_ms), abs=1e-3)
    # Every one of the six blocks is filled up to its 60 ms, however slow the machine; samples are rounded to 0.1 µs.
    assert sum(reference.latency.samples_ms) >= 6 * 60 - 0.1
    assert len(fast.throughput.rounds_tiles_per_s) == 6
    assert "uint8 tiles in host memory" in report.timed_region


class GoesCold(SlowEncoder):
    """A call of a size that rested long takes a hundred times as long, as one does whose memory was taken back."""

    rest_s = 5.0

    def __init__(self, ms_per_tile: float) -> None:
        super().__init__(ms_per_tile)
        self.last: dict[int, float] = {}

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if time.perf_counter() - self.last.get(len(tiles), -self.rest_s) > self.rest_s:
            time.sleep(100 * self.ms_per_tile * len(tiles) / 1e3)
        found = super().encode(tiles)
        self.last[len(tiles)] = time.perf_counter()
        return found


@pytest.mark.usefixtures("clock")
def test_what_was_warmed_up_first_is_warm_in_the_first_round() -> None:
    encoders = {"reference": GoesCold(4.0), "long to warm up": SlowEncoder(400.0)}
    report = paired_speed(encoders, TILES, reference="reference", batch=4, rounds=2, block_seconds=0.06)
    rounds = report.encoders["reference"].throughput.rounds_tiles_per_s
    assert rounds == pytest.approx((250, 250))


def test_every_encoder_takes_every_position() -> None:
    orders = [_turns(["a", "b"], number) for number in range(4)]
    assert {order[0] for order in orders} == {"a", "b"}
    assert sorted(_turns(["a", "b", "c"], 5)) == ["a", "b", "c"]


@pytest.mark.usefixtures("clock")
def test_throttling_and_noise_are_said_with_their_cure() -> None:
    class Throttling(SlowEncoder):
        calls = 0

        def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.calls += 1
            self.ms_per_tile = 1.0 if self.calls < 200 else 3.0
            return super().encode(tiles)

    report = paired_speed({"hot": Throttling(1.0)}, TILES, reference="hot", batch=1, rounds=12, block_seconds=0.02)
    assert any("throttles" in line and "--threads" in line for line in report.warnings)
    assert any("--rounds" in line for line in report.warnings)


@pytest.mark.usefixtures("clock")
def test_a_99th_percentile_of_few_calls_is_warned_of() -> None:
    def warned(seconds: float) -> bool:
        report = paired_speed({"a": SlowEncoder(1.0)}, TILES, reference="a", batch=1, rounds=2, block_seconds=seconds)
        calls = len(report.encoders["a"].latency.samples_ms)
        said = [line for line in report.warnings if "99th percentile" in line]
        assert bool(said) == (calls < 100) and all(f"of {calls} calls" in line for line in said)
        return bool(said)

    assert warned(0.01)
    assert not warned(0.5)


def test_bad_requests_are_refused() -> None:
    encoders = {"a": SlowEncoder(1.0)}
    with pytest.raises(UsageError, match="not among"):
        paired_speed(encoders, TILES, reference="b")
    with pytest.raises(UsageError, match="--batch"):
        paired_speed(encoders, TILES, reference="a", batch=9)
    with pytest.raises(UsageError, match="--rounds 10"):
        paired_speed(encoders, TILES, reference="a", batch=1, rounds=1)
