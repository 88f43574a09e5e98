"""Cold start: what a fresh process needs, and not what the one that starts it holds."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from atlas_edge.bench.cold_start import _fresh
from support import ROOT


def test_peak_memory_is_that_of_the_fresh_process_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    slim = _fresh(str(bundle), None, None)["peak_memory_bytes"]
    # Touched, so that it is resident: more than a fresh process needs.
    ballast = np.ones(int(1.5 * slim) // 8)
    assert psutil.Process().memory_info().rss > 1.5 * slim
    assert _fresh(str(bundle), None, None)["peak_memory_bytes"] < 1.25 * slim
    assert ballast[-1] == 1
