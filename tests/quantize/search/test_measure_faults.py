"""Long measurements that are interrupted, or whose disk fills up: nothing half-written, and nothing measured twice."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT, heed_ctrl_c

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals and limits the size of files")

BEFORE = "# Kept as it was\n"
TABLE = ROOT / "tools" / "quantization_table.py"


def words(kind: str, folder: Path, model: Path, tiles: Path) -> list[str]:
    if kind == "table":
        return [str(TABLE), str(folder / "doc.md"), str(model), str(tiles), "--target", "onnx"]
    return [
        "-m",
        "atlas_edge.quantize",
        "search",
        str(model),
        str(tiles),
        "--max-drop",
        "60",
        "--out",
        str(folder / "plan"),
        "--minutes",
        "0.01",
    ]


def started(arguments: list[str], before: Callable[[], None] = lambda: None) -> "subprocess.Popen[str]":
    command = [sys.executable, *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before
    )


def journal(folder: Path) -> str:
    found = list(folder.glob(".*.work/journal.jsonl"))
    return found[0].read_text() if found else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "doc.md").write_text(BEFORE)
    return tmp_path


@pytest.mark.parametrize("kind", ["table", "search"])
def test_ctrl_c_leaves_the_output_alone_and_keeps_what_is_known(
    kind: str, folder: Path, tiny_model: Path, tiles: Path
) -> None:
    arguments = words(kind, folder, tiny_model, tiles)
    child = started(arguments, heed_ctrl_c)
    while child.poll() is None and "accuracy" not in journal(folder):
        time.sleep(0.05)
    child.send_signal(2)
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert (folder / "doc.md").read_text() == BEFORE and not (folder / "plan").exists()
    known = journal(folder).count("\n")
    assert known
    if kind == "search":  # that it goes on is seen in `test_search_finds_a_plan_that_export_reproduces`
        return

    again = started(arguments)
    said = again.communicate(timeout=500)[1]
    assert again.returncode == 0, said
    assert f"going on with {known} results" in said
    assert "tiny" in (folder / "doc.md").read_text()
    assert (folder / "doc.md").read_text().startswith(BEFORE.strip())
    assert not list(folder.glob(".*.work"))


@pytest.mark.parametrize("kind", ["table", "search"])
def test_a_full_disk_is_said_and_nothing_half_is_left(kind: str, folder: Path, tiny_model: Path, tiles: Path) -> None:
    # A limit on the size of a file stands for a full disk: the reference graph cannot be written.
    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    child = started(words(kind, folder, tiny_model, tiles), limited)
    said = child.communicate(timeout=240)[1]
    assert child.returncode == 5, said
    assert "free disk space" in said and "Traceback" not in said
    assert (folder / "doc.md").read_text() == BEFORE and not (folder / "plan").exists()
