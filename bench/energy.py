"""Energy per thousand tiles, where the machine has a counter that can be read; otherwise nothing."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Encoder

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of the whole package or device while one encoder ran; idle power and other programs are in it.

    Attributes:
        joules_per_thousand_tiles: Energy over tiles.
        watts: Mean power.
        seconds: How long it was measured.
        counter: Which counter was read.
    """

    joules_per_thousand_tiles: float
    watts: float
    seconds: float
    counter: str


class EnergyCounter(Protocol):
    """A counter of joules that only grows, up to wrapping."""

    name: str

    def joules_since(self, earlier: tuple[int, ...]) -> float:
        """Joules between an earlier reading and now."""
        ...

    def read(self) -> tuple[int, ...]:
        """The present reading."""
        ...


def find_counter() -> EnergyCounter | None:
    """The counter of this machine: NVML of a GPU, else RAPL of the CPU packages, else None."""
    return _NvmlCounter.find() or RaplCounter.find()


def measure_energy(
    encoder: Encoder, tiles: NDArray[np.uint8], counter: EnergyCounter, *, seconds: float = 5.0
) -> Energy:
    """Encode the tiles again and again for `seconds` and read the counter before and after."""
    encoder.encode(tiles)
    count = 0
    before, started = counter.read(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        encoder.encode(tiles)
        count += len(tiles)
    elapsed = time.perf_counter() - started
    joules = counter.joules_since(before)
    return Energy(
        joules_per_thousand_tiles=1e3 * joules / count, watts=joules / elapsed, seconds=elapsed, counter=counter.name
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


class _NvmlCounter:
    """NVML's energy counter of the first GPU, in millijoules."""

    name = "NVML (first GPU)"

    def __init__(self, handle: object) -> None:
        self._handle = handle

    @classmethod
    def find(cls) -> "_NvmlCounter | None":
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            return None
        return cls(handle)

    def read(self) -> tuple[int, ...]:
        import pynvml

        return (int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)),)

    def joules_since(self, earlier: tuple[int, ...]) -> float:
        return (self.read()[0] - earlier[0]) / 1e3


def _readable(path: Path) -> bool:
    try:
        path.read_text()
    except OSError:
        return False
    return True
