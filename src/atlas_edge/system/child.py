"""Run one of our modules as a process of its own: native libraries may print, keep state, or end the process.

Such a process ends with the one that started it, however that one ends: what nobody waits for any more would only keep
a processor busy.
"""

import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import atlas_edge

_LOOK_S = 0.5


def run_module(module: str, *, stdin: str = "", timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module` with this interpreter and this copy of atlas-edge.

    Raises:
        subprocess.TimeoutExpired: It took longer; it has been ended.
    """
    from atlas_edge.system.process import ProcessId

    # The package may be on sys.path without being installed (a source tree).
    source = str(Path(atlas_edge.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        # Without -P modules would be looked for in the working folder first: one of slides, or anybody's.
        [sys.executable, "-P", "-m", __name__, str(ProcessId.current()), module],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _main() -> None:
    _, parent, module = sys.argv
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    del sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(process: str) -> None:
    # Asked for again and again: a signal at the parent's end is Linux's alone, and of the thread that started this.
    time.sleep(_LOOK_S)
    from atlas_edge.system.process import ProcessId  # which most children end before they need

    parent = ProcessId.parse(process)
    while parent is not None and parent.is_running() is not False:
        time.sleep(_LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    _main()
