import subprocess
from pathlib import Path

import pytest

from support import ROOT, RunCommand, command_environment
from warm import WarmCommands


@pytest.fixture(scope="session")
def run_tool(warm: WarmCommands) -> RunCommand:
    """Run one of the scripts that make the documentation's figures: `run_tool("engine_table", "--help")`."""

    def run(tool: str, *arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        (script,) = (ROOT / "tools").rglob(f"{tool}.py")
        return warm.run([script, *arguments], cwd=cwd, environment=command_environment())

    return run
