"""Cold start: what a fresh process needs, and not what the one that starts it holds."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from atlas_edge.bench.speed import cold_start as under_test
from atlas_edge.bench.speed.cold_start import _fresh, cold_start
from atlas_edge.errors import InputError, RuntimeMissing
from support import ROOT


def test_peak_memory_is_that_of_the_fresh_process_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    slim = _fresh(str(bundle), None, None)["peak_memory_bytes"]
    # Touched, so that it is resident: more than a fresh process needs.
    ballast = np.ones(int(1.5 * slim) // 8)
    assert psutil.Process().memory_info().rss > 1.5 * slim
    assert _fresh(str(bundle), None, None)["peak_memory_bytes"] < 1.25 * slim
    assert ballast[-1] == 1


def test_a_process_that_hangs_or_lacks_a_runtime_is_told_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_TIMEOUT_S", 0.01)
    with pytest.raises(InputError, match=r"no embedding within 0\.01 s") as hung:
        cold_start("some-model")
    assert hung.value.exit_code == 5
    monkeypatch.undo()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'this engine needs a GPU' >&2\nexit 4\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(RuntimeMissing, match="needs a GPU"):
        cold_start("some-engine")
