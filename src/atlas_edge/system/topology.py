"""How a processor's cores differ: fast ones beside economical ones, and which lie next to which memory."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Cores by their kind, as Linux says.

    Attributes:
        performance_cores: Physical ones, of a processor that has both kinds; 0 where all are alike, or nobody says.
        efficiency_cores: The same.
        numa_nodes: Parts of the memory that have cores next to them.
    """

    performance_cores: int = 0
    efficiency_cores: int = 0
    numa_nodes: int = 1

    def __str__(self) -> str:
        parts = []
        if self.performance_cores and self.efficiency_cores:
            parts.append(f"{self.performance_cores} for performance, {self.efficiency_cores} for efficiency")
        if self.numa_nodes > 1:
            parts.append(f"on {self.numa_nodes} NUMA nodes")
        return ", ".join(parts)


def topology(root: Path = Path("/sys/devices")) -> Topology:
    """Read it; cores that are alike on one node where nothing says otherwise, as outside Linux.

    Intel's hybrid processors have a performance monitor for either kind of core, `cpu_core` and `cpu_atom` (Linux,
    Documentation/ABI/testing/sysfs-bus-event_source-devices), each with a list of its logical processors.

    Args:
        root: Where Linux describes devices.
    """
    fast, economical = (_cores(root, _numbers(root / kind / "cpus")) for kind in ("cpu_core", "cpu_atom"))
    nodes = [path for path in (root / "system" / "node").glob("node[0-9]*") if _numbers(path / "cpulist")]
    both = bool(fast and economical)
    return Topology(
        performance_cores=len(fast) if both else 0,
        efficiency_cores=len(economical) if both else 0,
        numa_nodes=max(len(nodes), 1),
    )


def _cores(root: Path, logical: set[int]) -> set[int]:
    """Physical cores, each by the first of its logical ones."""
    siblings = {
        number: _numbers(root / "system" / "cpu" / f"cpu{number}" / "topology" / "thread_siblings_list")
        for number in logical
    }
    return {min(found or {number}) for number, found in siblings.items()}


def _numbers(file: Path) -> set[int]:
    """What a list such as `0-3,8` names; nothing where there is none."""
    try:
        ranges = re.findall(r"(\d+)(?:-(\d+))?", file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return set()
    return {number for first, last in ranges for number in range(int(first), int(last or first) + 1)}
