"""What tests import from one another."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY_PX = 32

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def heed_ctrl_c() -> None:
    """For `preexec_fn`: a test run started in the background has its children ignore SIGINT, as it does itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
