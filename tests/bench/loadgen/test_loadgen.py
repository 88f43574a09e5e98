"""A bundle under MLPerf's own LoadGen."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from atlas_edge.bench.cli import app
from atlas_edge.bench.loadgen.logs import read_accuracy, read_performance
from atlas_edge.cli import run_app
from atlas_edge.errors import InputError
from support import check_ends_with, command_environment


def test_loadgen_times_a_bundle_and_finds_it_as_accurate_as_it_is(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlperf_loadgen")
    report = tmp_path / "report"
    words = ["loadgen", str(bundle), "--report", str(report), "--seconds", "0.5", "--threads", "1", "--json"]
    assert run_app(app, words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((report / "loadgen.json").read_text())
    assert found["scenarios"].keys() == {"SingleStream", "Offline"}
    for name, scenario in found["scenarios"].items():
        performance = scenario["performance"]
        assert performance["tiles_per_s"] > 0 and performance["tiles"] >= 64
        assert (performance["latency_ms"] is None) == (name == "Offline")
        assert scenario["accuracy"]["tiles"] == 64 and scenario["accuracy"]["cosine_median"] > 0.9
        assert scenario["test01_tiles"] >= 64 and scenario["test01_worst"] > 1 - 1e-5
        for run in ("performance", "accuracy", "TEST01"):
            assert (report / "logs" / name / run / "mlperf_log_summary.txt").stat().st_size > 0
    assert "LoadGen" in (report / "loadgen.html").read_text()
    assert run_app(app, words) == 2 and "--overwrite" in capsys.readouterr().err
    # What keeps the bundle from opening in the other process is told as it is anywhere.
    assert run_app(app, [*words[:2], "--report", str(tmp_path / "gpu"), "--device", "NPU"]) == 4
    assert "NPU" in capsys.readouterr().err and not (tmp_path / "gpu").exists()


def test_a_killed_command_leaves_no_loadgen(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    words = ["loadgen", bundle, "--report", tmp_path / "report", "--seconds", "60", "--threads", "1"]
    parent = subprocess.Popen([sys.executable, "-m", "atlas_edge.bench", *words], env=command_environment())
    family = psutil.Process(parent.pid)
    while not list(tmp_path.rglob("mlperf_log_detail.txt")):  # until it is driven
        assert parent.poll() is None
        time.sleep(0.1)
    (child,) = family.children()
    check_ends_with(parent, child)


def test_without_it_it_is_said_what_to_install(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atlas_edge.system import hardware

    monkeypatch.setattr(hardware, "installed_module", lambda name: None if name == "mlperf_loadgen" else name)
    assert run_app(app, ["loadgen", str(bundle), "--report", str(tmp_path / "report")]) == 4
    assert "atlas-edge[loadgen]" in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_logs_are_read(tmp_path: Path) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    entries = [{"seq_id": n, "qsl_idx": i, "data": rows[i].tobytes().hex()} for n, i in enumerate((2, 0, 3, 1))]
    (tmp_path / "mlperf_log_accuracy.json").write_text(json.dumps(entries))
    indices, found = read_accuracy(tmp_path, 2)
    np.testing.assert_array_equal(indices, np.arange(4))
    np.testing.assert_array_equal(found, rows)
    (tmp_path / "mlperf_log_detail.txt").write_text(':::MLLOG {"key": "result_validity", "value": "VALID"}\nnoise\n')
    with pytest.raises(InputError, match="lacks"):
        read_performance(tmp_path, offline=True)
