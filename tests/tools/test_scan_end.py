"""The marker is waited for no longer than a look takes, an unchanged file as long as it was told."""

from pathlib import Path

import pytest

import scan_end as tool
from embed.conftest import make_mean_bundle, make_scan

pytest.importorskip("tifffile")
pytest.importorskip("openvino")


def test_times_from_the_scans_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan, bundle = make_scan(tmp_path / "scan.tif"), make_mean_bundle(tmp_path / "bundle")
    typed = [str(scan), "--bundle", str(bundle), "--tile-mpp", "1", "--scan-seconds", "0.2"]
    assert tool.run_app(tool.app, [*typed, "--settle-seconds", "1.5", "--poll-seconds", "0.1"]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["unchanged for 1.5 s", "`NAME.done` is there"]
    settled, marked = (float(row[1].split()[0]) for row in rows)
    assert settled >= 1.5 and marked < settled
