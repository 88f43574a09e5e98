"""What tests import from one another."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY_PX = 32

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def heed_ctrl_c() -> None:
    """For `preexec_fn`: a test run started in the background has its children ignore SIGINT, as it does itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which stands for a full disk; POSIX only."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
