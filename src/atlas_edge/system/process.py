"""Which process left something behind, and whether it still runs."""

import hashlib
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told from every other one that ever ran: here, in another container, on another machine.

    Its text fits into a file name: `PID-STARTED-MACHINE`.

    Attributes:
        pid: Process id.
        started: When it started, on a clock that is not set: ticks since the boot on Linux, else seconds.
        machine: Hash of boot and PID namespace on Linux, else of the host's name, in 12 hexadecimal digits, since file
            names are short; process ids mean something within it only.
    """

    pid: int
    started: int
    machine: str

    @classmethod
    def current(cls) -> "ProcessId":
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """A process that runs here now."""
        return cls(pid, _started(pid), _machine())

    @classmethod
    def parse(cls, text: str) -> "ProcessId | None":
        """Read what `str` wrote; None where that is something else."""
        pid, _, rest = text.partition("-")
        started, _, machine = rest.partition("-")
        return cls(int(pid), int(started), machine) if pid.isdecimal() and started.isdecimal() and machine else None

    def is_running(self) -> bool | None:
        """Whether it runs; None where that cannot be known from here."""
        if self.machine != _machine():
            return None
        try:
            # A process id is given out again; container after container starts as number 1.
            return abs(_started(self.pid) - self.started) <= _CLOCK_SLACK
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return False
        except (psutil.AccessDenied, PermissionError):
            return None

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}-{self.machine}"


_HAS_PROC = Path("/proc/self/stat").exists()
# psutil rounds what Windows and macOS say.
_CLOCK_SLACK = 0 if _HAS_PROC else 1


def _started(pid: int) -> int:
    if _HAS_PROC:
        # psutil adds the time of the boot, which moves when somebody sets the clock.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return int(psutil.Process(pid).create_time())


def _machine() -> str:
    name = socket.gethostname()
    if _HAS_PROC:
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            name = f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
