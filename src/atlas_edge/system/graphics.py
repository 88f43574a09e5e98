"""Graphics cards and accelerators as the operating system lists them: no driver's library is loaded."""

import sys
from contextlib import suppress
from pathlib import Path

# Display adapters; "Compute accelerators", which NPUs are, since Windows 11.
_WINDOWS_CLASSES = ("{4d36e968-e325-11ce-bfc1-08002be10318}", "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}")
_WINDOWS_KEY = r"SYSTEM\CurrentControlSet\Control\Class"
_LINUX_CLASSES = ("drm/card[0-9]*", "accel/accel[0-9]*")


def graphics() -> tuple[str, ...]:
    """One line a device: name and driver version on Windows, PCI ids and NVIDIA's driver version on Linux.

    It changes when a card or a driver does; empty where the system does not say.
    """
    return _of_registry() if sys.platform == "win32" else _of_sysfs()


def _of_sysfs(root: Path = Path("/sys")) -> tuple[str, ...]:
    found: set[str] = set()
    for pattern in _LINUX_CLASSES:
        for device in (root / "class").glob(f"{pattern}/device"):
            with suppress(OSError):
                found.add(
                    " ".join((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "device"))
                )
    with suppress(OSError):
        found.add(f"nvidia {(root / 'module/nvidia/version').read_text(encoding='ascii').strip()}")
    return tuple(sorted(found))


def _of_registry() -> tuple[str, ...]:
    found: set[str] = set()
    if sys.platform == "win32":
        import winreg

        for kind in _WINDOWS_CLASSES:
            with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"{_WINDOWS_KEY}\{kind}") as devices:
                for index in range(winreg.QueryInfoKey(devices)[0]):
                    with suppress(OSError), winreg.OpenKey(devices, winreg.EnumKey(devices, index)) as device:
                        names = ("DriverDesc", "DriverVersion")
                        found.add(" ".join(str(winreg.QueryValueEx(device, name)[0]) for name in names))
    return tuple(sorted(found))
