"""Run one of our modules as a process of its own: native libraries may print, keep state, or end the process."""

import os
import subprocess
import sys
from pathlib import Path

import atlas_edge


def run_module(module: str, *, stdin: str = "", timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module` with this interpreter and this copy of atlas-edge.

    Raises:
        subprocess.TimeoutExpired: It took longer; it has been ended.
    """
    # The package may be on sys.path without being installed (a source tree).
    source = str(Path(atlas_edge.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        # Without -P modules would be looked for in the working folder first: one of slides, or anybody's.
        [sys.executable, "-P", "-m", module],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
