"""What reads of a simulated share wait, and that every form has its row."""

import os
import tempfile
import threading

import pytest

import read_throughput as tool

pytest.importorskip("imagecodecs")
pytestmark = pytest.mark.skipif(not hasattr(os, "pread"), reason="a share is simulated where files are read by pread")


def test_requests_share_the_bandwidth_and_wait_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(tool.time, "sleep", waited.append)
    monkeypatch.setattr(tool.time, "perf_counter", lambda: 100.0)
    genuine = os.pread
    with tempfile.TemporaryFile() as file, tool.slow_share(2.0, 20.0):
        file.write(b"x" * 2_000_000)
        file.flush()
        assert len(os.pread(file.fileno(), 1_000_000, 0)) == 1_000_000
        other = threading.Thread(target=os.pread, args=(file.fileno(), 200_000, 0))
        other.start()
        other.join()
    # 1 MB at 2 MB/s, then 0.2 MB behind it; the 20 ms do not add up.
    assert waited == pytest.approx([0.52, 0.62])
    assert os.pread is genuine


def test_every_form_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    tool.read_throughput(side=512, share_mb_s=1000.0, share_ms=0.0)
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert [row for row in rows if row in tool._FORMS] == list(tool._FORMS)
    assert sum(row.endswith("gives") for row in rows) == 6
