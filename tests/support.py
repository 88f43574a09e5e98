"""What tests import from one another."""

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY_PX = 32

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]
