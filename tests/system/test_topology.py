"""Cores that differ, by what Linux says of them: made-up machines in a folder."""

from pathlib import Path

import pytest

from atlas_edge.system.topology import Topology, topology


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


def test_a_hybrid_processor(tmp_path: Path) -> None:
    # Two fast cores of two threads each, four economical ones of one thread.
    siblings = {number: f"{number // 2 * 2}-{number // 2 * 2 + 1}" for number in range(4)}
    siblings |= {number: f"{number}" for number in range(4, 8)}
    files = {"cpu_core/cpus": "0-3", "cpu_atom/cpus": "4-6,7", "system/node/node0/cpulist": "0-7"}
    files |= {f"system/cpu/cpu{number}/topology/thread_siblings_list": text for number, text in siblings.items()}
    found = topology(machine(tmp_path, files))
    assert found == Topology(performance_cores=2, efficiency_cores=4, numa_nodes=1)
    assert str(found) == "2 for performance, 4 for efficiency"


def test_two_sockets(tmp_path: Path) -> None:
    # The third node is memory that no core lies next to.
    files = {f"system/node/node{number}/cpulist": text for number, text in enumerate(("0-3,8-11", "4-7,12-15", ""))}
    found = topology(machine(tmp_path, files | {"system/node/online": "0-2"}))
    assert found == Topology(numa_nodes=2) and str(found) == "on 2 NUMA nodes"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu_core/cpus": "0-3"},
        {"cpu_core/cpus": "0-3", "cpu_atom/cpus": ""},
        {"cpu_atom/cpus": "\x00nonsense", "cpu_core/cpus": "-"},
    ],
)
def test_cores_that_are_alike(tmp_path: Path, files: dict[str, str]) -> None:
    found = topology(machine(tmp_path, files))
    assert found == Topology() and str(found) == ""


def test_this_machine_is_read() -> None:
    assert topology().numa_nodes >= 1
