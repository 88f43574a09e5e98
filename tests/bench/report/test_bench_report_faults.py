"""A report that could not be written whole: Ctrl-C, a full disk, kill -9, a folder that takes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_edge.bench.cli import app
from atlas_edge.bench.report.files import check_report_folder, write_report
from atlas_edge.cli import run_app
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from reports import report
from support import ROOT, disk_full_after, heed_ctrl_c

QUICK = ("--rounds", "2", "--block-seconds", "0.02", "--threads", "1")
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(os.name == "nt", reason="a limit on file sizes is POSIX")
def test_a_full_disk_keeps_the_old_report_and_the_figures(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Writing fails in the middle of report.html.
    write_report(report(), tmp_path / "r")
    old = contents(tmp_path / "r")
    with disk_full_after(15_000):
        words = ["speed", str(bundle), *QUICK, "--report", str(tmp_path / "r"), "--overwrite", "--json"]
        code = run_app(app, words)
    printed = capsys.readouterr()
    assert code == 5 and "check free disk space" in printed.err and "written:" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert contents(tmp_path / "r") == old
    # Minutes of measuring are not lost with the disk.
    assert json.loads(printed.out)["speed"]["encoders"]["tiny"]["throughput"]["tiles_per_s"] > 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see that the measurement has begun")
def test_ctrl_c_while_measuring_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "atlas_edge.bench", "speed", bundle, "--rounds", "100000", "--report", tmp_path / "r",
        "--threads", "1", "--json",
    ]  # fmt: skip
    child = subprocess.Popen(
        command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    while child.poll() is None and "openvino_intel_cpu" not in Path(f"/proc/{child.pid}/maps").read_text():
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    out, printed = child.communicate(timeout=60)
    assert child.returncode == 130, printed
    assert "Traceback" not in printed and "error: interrupted" in printed
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", range(6))
def test_ctrl_c_at_any_file_leaves_the_old_report(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(report(), tmp_path / "r")
    old = contents(tmp_path / "r")
    write, written = Path.write_text, 0

    def interrupted(self: Path, *arguments: object, **options: object) -> int:
        nonlocal written
        if written == number:
            raise KeyboardInterrupt
        written += 1
        return write(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(report(), tmp_path / "r", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert contents(tmp_path / "r") == old


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_kill_9_between_files_leaves_no_half_report(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from reports import report\n"
        "from atlas_edge.bench.report.files import write_report\n"
        "write, count = Path.write_text, []\n"
        "def killed(self, *arguments, **options):\n"
        "    if len(count) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    count.append(self); return write(self, *arguments, **options)\n"
        "Path.write_text = killed\n"
        "write_report(report(), Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "r"], env=ENVIRON, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "r").exists()
    assert [path.name.startswith(".r.partial-") for path in tmp_path.iterdir()] == [True]
    write_report(report(), tmp_path / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_would_fail_at_the_end_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_report_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="takes no files"):
        check_report_folder(tmp_path / "file" / "r", overwrite=False)
    check_report_folder(tmp_path / "new" / "r", overwrite=False)
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(RuntimeMissing, match=r"atlas-edge\[report\]"):
        check_report_folder(tmp_path / "r", overwrite=False)
