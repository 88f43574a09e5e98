"""What the machine may use, not what it has."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from atlas_edge.runtimes.tensorrt_library import RTX, import_library
from atlas_edge.system import hardware


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"user/cpu.max": "400000 100000", "cpu.max": "max 100000"}, "0::/user/run", 4.0),
        ({"user/run/cpu.max": "800000 100000", "user/cpu.max": "200000 100000"}, "0::/user/run", 2.0),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, "4:memory:/x\n1:cpu:/", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", None),
        ({"cpu.max": "200000 100000"}, "0::/docker/of-the-host", 2.0),
        ({"cpu.max": "broken"}, "0::/", None),
        ({}, "0::/", None),
    ],
)
def test_a_container_s_share_of_the_processor(
    files: dict[str, str], own: str, cores: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert hardware._cgroup_cores(tmp_path / "cgroup", tmp_path / "own") == cores


@pytest.mark.skipif(sys.platform == "darwin", reason="pins no process")
def test_the_smallest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 64)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(16)))
    for quota, cores in ((None, 16), (2.5, 2), (0.5, 1), (32.0, 16)):
        monkeypatch.setattr(hardware, "_cgroup_cores", lambda quota=quota: quota)
        assert hardware.usable_cores() == cores


def test_a_library_is_known_by_what_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"tensorrt-rtx-cu13-bindings": "1.7.1.116", "numpy": "2.4.6"}

    def version(name: str) -> str:
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(hardware.metadata, "version", version)
    assert hardware.installed_versions(("tensorrt-rtx", "numpy", "torch")) == {
        "tensorrt-rtx": "1.7.1.116",
        "numpy": "2.4.6",
    }


def test_a_library_is_imported_by_what_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.installed_module("numpy") == "numpy" and hardware.installed_module("none_such") is None
    trt = pytest.importorskip("tensorrt_rtx")
    genuine = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorrt_rtx" else genuine(name))
    assert hardware.installed_module("tensorrt_rtx") == "tensorrt_rtx_bindings"
    assert import_library(RTX).Builder is trt.Builder
