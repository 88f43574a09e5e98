"""Cards and drivers, as each system lists them."""

from pathlib import Path

import pytest

from atlas_edge.system.graphics import _of_sysfs, graphics
from windows import windows


def test_on_linux_a_card_is_its_pci_ids_and_nvidia_s_driver_its_version(tmp_path: Path) -> None:
    for name, ids in (
        ("drm/card0", ("0x10de", "0x2684")),
        ("drm/card1", ("0x8086", "0x7d55")),
        ("accel/accel0", ("0x8086", "0x7d1d")),
    ):
        device = tmp_path / "class" / name / "device"
        device.mkdir(parents=True)
        for file, value in zip(("vendor", "device"), ids, strict=True):
            (device / file).write_text(f"{value}\n")
    # A connector of the card is listed beside it.
    (tmp_path / "class/drm/card0-HDMI-A-1/device").mkdir(parents=True)
    assert _of_sysfs(tmp_path) == ("0x10de 0x2684", "0x8086 0x7d1d", "0x8086 0x7d55")
    (tmp_path / "module/nvidia").mkdir(parents=True)
    (tmp_path / "module/nvidia/version").write_text("580.65.06\n")
    assert "nvidia 580.65.06" in _of_sysfs(tmp_path)
    assert _of_sysfs(tmp_path / "none") == ()


def test_on_windows_it_is_name_and_driver_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with windows(monkeypatch):
        assert graphics() == ("NVIDIA RTX A4000 32.0.15",)
