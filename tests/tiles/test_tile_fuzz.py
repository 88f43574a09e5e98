"""Damaged files of every kind end in an answer; see `fuzz_files.py`, which tries more of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_damaged_files_are_read_or_refused() -> None:
    for module in ("pyarrow", "h5py", "timm"):
        pytest.importorskip(module)
    script = Path(__file__).with_name("fuzz_files.py")
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--count", "65", "--seed", "3"], capture_output=True, text=True, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = dict(line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| "))
    assert counted[" all "].strip() == "65"
