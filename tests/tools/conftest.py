import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, RunCommand


@pytest.fixture(scope="session")
def run_tool() -> RunCommand:
    """Run one of the scripts that make the documentation's figures: `run_tool("engine_table", "--help")`."""

    def run(tool: str, *arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"},
            timeout=500,
        )

    return run
