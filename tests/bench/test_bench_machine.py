import sys
import time
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.machine import this_machine
from atlas_edge.bench.speed.energy import NvmlCounter, RaplCounter, find_counter, measure_energies
from atlas_edge.bench.speed.processor_load import ProcessorLoad
from atlas_edge.encoder import Capabilities
from atlas_edge.system.hardware import installed_versions


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


class OnDevice:
    """An encoder of which only the device matters."""

    def __init__(self, gpu: int | None) -> None:
        self.capabilities = Capabilities(gpu=gpu)


class Nvml(ModuleType):
    """NVML of two cards; the second one's counter stands at 7 J."""

    NVMLError = RuntimeError

    def __init__(self, *names: str) -> None:
        super().__init__("pynvml")
        self.names = names

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return 7000 * handle


def test_energy_is_that_of_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    rapl = RaplCounter(())
    monkeypatch.setattr(RaplCounter, "find", lambda: rapl)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("RTX 4090", "RTX 4090"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # The card is idle while the processor computes: its joules are not the encoder's.
    assert find_counter(OnDevice(None)) is rapl  # type: ignore[arg-type]
    second = find_counter(OnDevice(1))  # type: ignore[arg-type]
    assert second is not None and second.read() == (7000,) and second.name == "NVML (RTX 4090)"
    # And where the card cannot be read, the processor's are not its own.
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert find_counter(OnDevice(0)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "visible", "order", "reading"),
    [
        (("A", "A"), "1", None, 7000),
        (("A", "A"), "GPU-1", None, 7000),
        (("A", "B"), "", None, None),  # fastest first: which one is CUDA's 0?
        (("A", "B"), "1", "PCI_BUS_ID", 7000),
        (("A", "A"), "5", None, None),
        (("A", "A"), "MIG-1", None, None),
    ],
)
def test_cuda_s_first_gpu_is_found_among_nvml_s(
    names: tuple[str, ...], visible: str, order: str | None, reading: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(*names))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    found = NvmlCounter.find(0)
    assert (None if found is None else found.read()[0]) == reading


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

    both, other, tiles = Counter(), Counter(), np.zeros((4, 2, 2, 3), np.uint8)
    encoders = {"a": both, "b": other, "without a counter": Counter()}
    counters = {"a": both, "b": other}
    energies = measure_energies(encoders, dict.fromkeys(encoders, tiles), counters, rounds=3, seconds=0.02)  # type: ignore[arg-type]
    assert energies.keys() == {"a", "b"}
    found = energies["a"]
    assert found.joules_per_thousand_tiles == pytest.approx(10_000)
    assert found.watts == pytest.approx(10 * (both.tiles - 4) / found.seconds)
    assert found.counter == "test" and found.seconds >= 0.06
    assert found.interval is not None and (found.interval.units, found.interval.unit) == (3, "round")
    assert found.interval.low == pytest.approx(found.interval.high) == pytest.approx(10_000)


def test_own_work_counts_as_own_load() -> None:
    load, used, wall = ProcessorLoad(), time.process_time(), time.perf_counter()
    while time.process_time() - used < 0.5:
        np.dot(np.ones((200, 200)), np.ones((200, 200)))
    shares = load.since()
    cores = psutil.cpu_count() or 1
    own = (time.process_time() - used) / (time.perf_counter() - wall) / cores
    assert shares is not None
    # The system counts in hundredths of a second.
    assert shares.own == pytest.approx(own, rel=0.25)
    assert 0 <= shares.others <= 1 - shares.own + 0.1 and 0 <= shares.stolen <= 1


def test_what_others_and_the_host_take_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    Times = namedtuple("Times", "user system idle iowait steal guest")
    Own = namedtuple("Own", "user system")
    systems = iter([Times(100, 50, 1000, 0, 0, 9), Times(104, 51, 1003, 1, 1, 99)])
    owns = iter([Own(10, 1), Own(12, 1.5)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(systems))
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: next(owns))
    # Of 4 + 1 + 3 + 1 + 1 = 10 s: 2.5 own, 4 idle, 1 stolen, the rest others'. Guests are in user already.
    found = ProcessorLoad().since()
    assert found is not None
    assert (found.own, found.others, found.stolen) == (pytest.approx(0.25), pytest.approx(0.25), pytest.approx(0.1))
