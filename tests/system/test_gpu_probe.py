import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.system import gpu_probe
from atlas_edge.system.gpu_probe import ask_driver, probe_gpu


def test_the_answer_of_this_machine_is_what_its_driver_lists() -> None:
    probe = probe_gpu()
    assert probe == ask_driver()
    if sys.platform == "linux" and not Path("/proc/driver/nvidia").is_dir():
        assert "no NVIDIA driver is installed" in probe.problem


@pytest.mark.parametrize("printed", ["", "\n", "a warning", "[1]", '{"gpus": [{"name": "RTX"}]}', "null"])
def test_an_answer_that_cannot_be_read_is_no_gpu(printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 0, stdout=printed, stderr="")
    monkeypatch.setattr(gpu_probe, "run_module", lambda *_, **__: ended)
    assert "no answer that can be read" in probe_gpu().problem


def test_a_driver_that_ends_the_process_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], -11, stdout="", stderr="")
    monkeypatch.setattr(gpu_probe, "run_module", lambda *_, **__: ended)
    probe = probe_gpu()
    assert probe.gpus == ()
    assert probe.problem == "the NVIDIA driver ended the probing process (code -11)"


def test_a_driver_that_hangs_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("probe", 1)

    monkeypatch.setattr(gpu_probe, "run_module", hang)
    assert "did not answer" in probe_gpu(timeout_s=1).problem


class FakeDriver:
    """The C functions that the probe calls, writing through the pointers that they are given."""

    def __init__(self, *, status: int = 0, devices: int = 1) -> None:
        self.status, self.devices = status, devices

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"NVIDIA RTX 4070"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 12 << 30
        return 0


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(devices=2))
    probe = ask_driver()
    assert (probe.driver, len(probe.gpus), probe.problem) == ("13.2", 2, "")
    assert (probe.gpus[0].name, probe.gpus[0].compute_capability) == ("NVIDIA RTX 4070", "8.9")
    assert probe.gpus[0].memory_bytes == 12 << 30


@pytest.mark.parametrize(
    ("driver", "problem"),
    [(FakeDriver(status=100), "cuInit returned 100"), (FakeDriver(devices=0), "lists no GPU")],
)
def test_a_driver_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, problem: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert problem in ask_driver().problem
