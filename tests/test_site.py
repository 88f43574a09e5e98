"""The pages build as a site, without a warning, and show the interface."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atlas_edge
from support import ROOT


def test_site_builds(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="pip install -e '.[docs]' to test it")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", tmp_path / "cache", ROOT / "docs"]
    # No proxy leads anywhere: whatever asked the network would fail.
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    done = subprocess.run([*build, tmp_path / "site"], capture_output=True, text=True, env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stderr
    interface = (tmp_path / "site/reference/api.html").read_text(encoding="utf-8")
    for name in (*atlas_edge.__all__, "embed_slide", "open_slide"):
        assert f'.{name}"' in interface, name
