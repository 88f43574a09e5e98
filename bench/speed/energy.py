"""Energy per thousand tiles, where the machine has a counter that can be read; otherwise nothing."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.encoder import Encoder

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of the whole package or device that computed; idle power and other programs are in it.

    Attributes:
        joules_per_thousand_tiles: Energy over tiles.
        watts: Mean power.
        seconds: How long it was measured.
        counter: Which counter was read.
        interval: Joules a thousand tiles by turns; None where a turn was too short for the counter.
    """

    joules_per_thousand_tiles: float
    watts: float
    seconds: float
    counter: str
    interval: Interval | None = None


class EnergyCounter(Protocol):
    """A counter of joules that only grows, up to wrapping."""

    name: str

    def joules_since(self, earlier: tuple[int, ...]) -> float:
        """Joules between an earlier reading and now."""
        ...

    def read(self) -> tuple[int, ...]:
        """The present reading."""
        ...


def find_counter(encoder: Encoder) -> EnergyCounter | None:
    """The counter of the device that computes: NVML of an encoder's GPU, RAPL of the CPU packages for all others.

    None where it cannot be read: another device's joules would say nothing.
    """
    gpu = encoder.capabilities.gpu
    return RaplCounter.find() if gpu is None else NvmlCounter.find(gpu)


def measure_energies(
    encoders: Mapping[str, Encoder],
    tiles: Mapping[str, NDArray[np.uint8]],
    counters: Mapping[str, EnergyCounter],
    *,
    rounds: int = 5,
    seconds: float = 1.0,
) -> dict[str, Energy]:
    """Encode the tiles again and again, the encoders in turns, and read the counters before and after each turn.

    Args:
        encoders: Name -> encoder.
        tiles: Name -> `(N, tile_px, tile_px, 3)` uint8.
        counters: Name -> counter of its device; encoders without one are left out.
        rounds: Turns of every encoder.
        seconds: How long a turn lasts, at least.
    """
    turns: dict[str, list[tuple[float, int, float]]] = {name: [] for name in counters}
    for name in counters:
        encoders[name].encode(tiles[name])
    for _ in range(rounds):
        for name, counter in counters.items():
            turns[name].append(_turn(encoders[name], tiles[name], counter, seconds))
    return {name: _energy(found, counters[name].name) for name, found in turns.items()}


def _turn(
    encoder: Encoder, tiles: NDArray[np.uint8], counter: EnergyCounter, seconds: float
) -> tuple[float, int, float]:
    """Joules, tiles, seconds."""
    count, before, started = 0, counter.read(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        encoder.encode(tiles)
        count += len(tiles)
    elapsed = time.perf_counter() - started
    return counter.joules_since(before), count, elapsed


def _energy(turns: list[tuple[float, int, float]], counter: str) -> Energy:
    joules, tiles, seconds = (np.array(column, dtype=np.float64) for column in zip(*turns, strict=True))
    each = 1e3 * joules / tiles
    return Energy(
        joules_per_thousand_tiles=1e3 * float(joules.sum() / tiles.sum()),
        watts=float(joules.sum() / seconds.sum()),
        seconds=float(seconds.sum()),
        counter=counter,
        interval=geometric_mean_interval(each) if (each > 0).all() else None,
    )


class RaplCounter:
    """Intel's and AMD's Running Average Power Limit counters of all CPU packages, in microjoules."""

    name = "RAPL (CPU packages)"

    def __init__(self, packages: tuple[Path, ...]) -> None:
        self._packages = packages

    @classmethod
    def find(cls, root: Path = RAPL) -> "RaplCounter | None":
        """The packages whose counters this user may read; None where there are none."""
        packages = tuple(
            folder
            for folder in sorted(root.glob("intel-rapl:*"))
            # Sub-domains (intel-rapl:0:0, cores or DRAM) are parts of their package.
            if folder.name.count(":") == 1 and _readable(folder / "energy_uj")
        )
        return cls(packages) if packages else None

    def read(self) -> tuple[int, ...]:
        """Microjoules of every package."""
        return tuple(int((folder / "energy_uj").read_text()) for folder in self._packages)

    def joules_since(self, earlier: tuple[int, ...]) -> float:
        """Joules since a reading, one wrap of each counter allowed for."""
        total = 0
        for folder, before, now in zip(self._packages, earlier, self.read(), strict=True):
            total += now - before if now >= before else now - before + self._range(folder)
        return total / 1e6

    def _range(self, folder: Path) -> int:
        return int((folder / "max_energy_range_uj").read_text())


class NvmlCounter:
    """NVML's energy counter of one GPU, in millijoules."""

    def __init__(self, handle: object, name: str) -> None:
        self._handle, self.name = handle, name

    @classmethod
    def find(cls, gpu: int) -> "NvmlCounter | None":
        """The counter of the GPU that CUDA calls `gpu`; None where it cannot be read, or cannot be told which it is.

        CUDA numbers the visible GPUs (`CUDA_VISIBLE_DEVICES`), fastest first unless `CUDA_DEVICE_ORDER` says otherwise;
        NVML numbers all, by bus. Of different GPUs a number alone tells nothing.
        """
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            handle = _nvml_handle(pynvml, gpu)
            if handle is None:
                return None
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            return cls(handle, f"NVML ({pynvml.nvmlDeviceGetName(handle)})")
        except pynvml.NVMLError:
            return None

    def read(self) -> tuple[int, ...]:
        """Millijoules since the driver was loaded."""
        import pynvml

        return (int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)),)

    def joules_since(self, earlier: tuple[int, ...]) -> float:
        """Joules since a reading."""
        return (self.read()[0] - earlier[0]) / 1e3


def _nvml_handle(pynvml: Any, gpu: int) -> object | None:
    count = pynvml.nvmlDeviceGetCount()
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    wanted = visible or [str(number) for number in range(count)]
    if gpu >= len(wanted):
        return None
    chosen = wanted[gpu]
    if not chosen.isdigit():
        # MIG slices have no counter of their own.
        found: object | None = pynvml.nvmlDeviceGetHandleByUUID(chosen) if chosen.startswith("GPU-") else None
        return found
    handles: list[object] = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
    alike = len({pynvml.nvmlDeviceGetName(handle) for handle in handles}) == 1
    if int(chosen) >= count or not (alike or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"):
        return None
    return handles[int(chosen)]


def _readable(path: Path) -> bool:
    try:
        path.read_text()
    except OSError:
        return False
    return True
