import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.energy import RaplCounter, find_counter, measure_energy
from atlas_edge.bench.machine import installed_versions, this_machine
from atlas_edge.bench.processor_load import ProcessorLoad


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.logical_cores >= 1 and machine.memory_bytes > 2**28
    assert machine.cpu and machine.system and machine.versions["numpy"] == np.__version__


def test_versions_name_only_what_is_installed() -> None:
    assert set(installed_versions(("numpy", "no-such-distribution"))) == {"numpy"}


def _rapl(root: Path, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_rapl_adds_packages_leaves_out_their_parts_and_survives_a_wrap(tmp_path: Path) -> None:
    one = _rapl(tmp_path, "intel-rapl:0", 100_000)
    two = _rapl(tmp_path, "intel-rapl:1", 900_000)
    _rapl(tmp_path, "intel-rapl:0:0", 0)
    counter = RaplCounter.find(tmp_path)
    assert counter is not None
    before = counter.read()
    assert before == (100_000, 900_000)
    (one / "energy_uj").write_text("600000")
    (two / "energy_uj").write_text("100000")  # wrapped at 1,000,000: 200,000 more
    assert counter.joules_since(before) == pytest.approx(0.7)


def test_no_readable_counter_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RaplCounter.find(tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()  # without energy_uj: as when only root may read it
    assert RaplCounter.find(tmp_path) is None
    monkeypatch.setattr("atlas_edge.bench.energy._NvmlCounter.find", lambda: None)
    monkeypatch.setattr("atlas_edge.bench.energy.RaplCounter.find", lambda: None)
    assert find_counter() is None


def test_energy_is_joules_over_tiles() -> None:
    class Counter:
        """10 J for every tile that was encoded."""

        name = "test"

        def __init__(self) -> None:
            self.tiles = 0

        def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.tiles += len(tiles)
            time.sleep(0.002)
            return np.zeros((len(tiles), 1), np.float32)

        def read(self) -> tuple[int, ...]:
            return (self.tiles,)

        def joules_since(self, earlier: tuple[int, ...]) -> float:
            return 10.0 * (self.tiles - earlier[0])

    both = Counter()
    found = measure_energy(both, np.zeros((4, 2, 2, 3), np.uint8), both, seconds=0.02)  # type: ignore[arg-type]
    assert found.joules_per_thousand_tiles == pytest.approx(10_000)
    assert found.watts == pytest.approx(10 * (both.tiles - 4) / found.seconds)
    assert found.counter == "test" and found.seconds >= 0.02


def test_own_work_counts_as_own_load() -> None:
    load = ProcessorLoad()
    started = time.process_time()
    while time.process_time() - started < 0.3:
        np.dot(np.ones((200, 200)), np.ones((200, 200)))
    shares = load.since()
    assert shares is not None
    assert 0 < shares.own <= 1 and 0 <= shares.others <= 1 and 0 <= shares.stolen <= 1
    assert shares.own + shares.others + shares.stolen <= 1.1
