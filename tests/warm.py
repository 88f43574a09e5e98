"""Commands in processes of their own that need not import PyTorch anew: a process that has, forks one for each.

Half of what a command takes on a tiny network is imports. What a command prints, writes and exits with is the same:
none of the modules below is asked for by our code before it needs it, which `test_core_cli` watches in a process that
starts from nothing.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LONGEST_S = 500
_HEAVY = (
    "torch",
    "timm",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "onnx",
    "onnxscript",
    "torch.onnx._internal.exporter._core",
    "modelopt.torch.quantization",
)


class WarmCommands:
    """A process with PyTorch imported, started when first needed, that runs commands one at a time in forks of itself.

    Args:
        scratch: Folder for what commands print.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None
        self._start: dict[str, str] = {}

    def run(
        self, words: Sequence[str | Path], *, cwd: Path | None, environment: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """Run `python WORDS`: `-m` and a module, or a script, and its arguments."""
        out, err = self._scratch / "stdout", self._scratch / "stderr"
        argv = list(map(str, words))
        if not self._takes(environment):
            start = [sys.executable, *argv]
            return subprocess.run(start, capture_output=True, text=True, cwd=cwd, env=environment, timeout=_LONGEST_S)
        order: dict[str, Any] = {"argv": argv, "environment": environment, "largest_file": _largest_file()}
        order |= {"cwd": str(cwd or Path.cwd()), "stdout": str(out), "stderr": str(err)}
        with self._lock:
            if self._server is None:
                self._start = _lasting(environment)
                start = [sys.executable, __file__]
                pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                self._server = subprocess.Popen(start, **pipes, env=environment, start_new_session=True)
            assert self._server.stdin is not None and self._server.stdout is not None
            try:
                print(json.dumps(order), file=self._server.stdin, flush=True)
                code = int(self._server.stdout.readline())
            except BaseException:  # a test's time is up: the next command starts anew
                self.close()
                raise
            return subprocess.CompletedProcess(argv, code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process, and what it runs."""
        if self._server is not None:
            with self._server:
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server = None

    def _takes(self, environment: dict[str, str]) -> bool:
        """Whether a command would see the same modules: what libraries read while they are imported is unchanged."""
        return hasattr(os, "fork") and self._start in ({}, _lasting(environment))


def _lasting(environment: dict[str, str]) -> dict[str, str]:
    """The environment, but for what only our own code and the terminal's library read, when a command runs."""
    return {key: value for key, value in environment.items() if not key.startswith(("ATLAS_", "PYTEST_"))}


def _largest_file() -> tuple[int, int]:
    """The limit that `support.disk_full_after` sets."""
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)


def _serve() -> None:
    # ModelOpt warns of optional parts; the filters are set back for the commands.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in _HEAVY:
            with contextlib.suppress(ImportError):  # it is for those who have it
                importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(order: dict[str, Any]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, order["largest_file"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, path in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    first, *rest = order["argv"]
    if first == "-m":
        sys.path[0], sys.argv = order["cwd"], rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).parent), [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve()
