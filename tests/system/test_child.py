"""Our modules in processes of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from atlas_edge.system.child import run_module
from support import check_ends_with, command_environment

_WAITS = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
_STARTS = "from atlas_edge.system.child import run_module; run_module('waits', timeout_s=60)"


def test_a_module_gets_what_it_is_to_read_and_its_words_and_exit_code_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import sys; print(__name__, sys.argv[1:], sys.stdin.read()); print('err', file=sys.stderr); sys.exit(7)"
    (tmp_path / "says.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = run_module("says", stdin="ünder", timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "__main__ [] ünder\n", "err\n")
    with pytest.raises(subprocess.TimeoutExpired):
        (tmp_path / "waits.py").write_text(_WAITS)
        run_module("waits", timeout_s=0.2)


def test_a_module_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(_WAITS)
    paths = os.pathsep.join((str(tmp_path), command_environment().get("PYTHONPATH", "")))
    environment = command_environment(PYTHONPATH=paths)
    parent = subprocess.Popen([sys.executable, "-c", _STARTS], cwd=tmp_path, env=environment)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int(pid.read_text()))
    check_ends_with(parent, child)
