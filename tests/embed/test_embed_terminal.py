"""What appears on a terminal: the bar of `atlas-embed`, the live table of `atlas-embed watch`."""

import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embed.conftest import make_scan
from support import ROOT, heed_ctrl_c

fcntl = pytest.importorskip("fcntl", reason="pseudo-terminals are POSIX")
termios = pytest.importorskip("termios")
pytest.importorskip("openslide")

WIDTH = 80


def test_bar_gives_way_to_results(mean_bundle: Path, tmp_path: Path) -> None:
    slides = [make_scan(tmp_path / f"{name}.tif", seed) for seed, name in enumerate("ab")]
    (tmp_path / "zero.svs").touch()
    code, lines = on_terminal(
        *slides, tmp_path / "zero.svs", "--bundle", mean_bundle, "--no-tissue", "--out", tmp_path / "out"
    )
    assert code == 5, lines
    assert any(re.match(r"a\.tif +[━╸╺ ]+ +\d+/\S+", line) for line in lines), lines
    # A result that is written into the bar starts no line.
    for start in ("a.tif: 600 tiles", "b.tif: 600 tiles", "zero.svs: FAILED"):
        assert any(line.startswith(start) for line in lines), lines


def test_live_table(mean_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    make_scan(folder / f"S26-0012345_{'long_' * 12}name.tif")
    (folder / "zero.svs").touch()

    def settled(screen: str) -> bool:
        # Wrapped and coloured as the table's width wants it.
        words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen).split())
        return "1 done, 1 quarantined" in words

    code, lines = on_terminal(
        "watch", folder, "--bundle", mean_bundle, "--out", tmp_path / "out", "--settle-seconds", "0",
        "--poll-seconds", "0.1", "--attempts", "1", "--port", "0",
        interrupt=settled,
    )  # fmt: skip
    assert code == 130, "\n".join(lines[-60:])
    table = [line for line in lines if line.startswith(("│", "┃"))]
    assert any("S26-0012345_" in line and "done" in line and "600/600" in line for line in table), lines
    assert any("zero.svs" in line and "quarantined" in line for line in table), lines
    assert any("is empty" in line for line in table), lines
    assert not any(str(folder) in line for line in table), lines
    assert all(len(line) <= WIDTH for line in table), lines
    assert "error: interrupted" in lines[-1], lines


def on_terminal(*arguments: object, interrupt: Callable[[str], bool] | None = None) -> tuple[int, list[str]]:
    """Run atlas-embed on a terminal of 80 columns; all that was ever written to it, line by line."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-m", "atlas_edge.embed", *map(str, arguments)],
        env={**environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT / "src")},
        stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    try:
        while True:
            written += os.read(ours, 65536)
            if interrupt is not None and interrupt(written.decode(errors="ignore")):
                interrupt = None
                time.sleep(0.2)
                child.send_signal(signal.SIGINT)
    except OSError:  # Linux: every other end is closed
        pass
    finally:
        os.close(ours)
        if child.poll() is None:
            child.wait(timeout=60)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    return child.returncode, [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
