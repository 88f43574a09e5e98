"""The tutorial runs as it stands, on smaller slides and fewer tiles."""

import re
import shlex
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from pages import COMMANDS, shell_lines
from support import ROOT, RunCommand

TEXT = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
SMALL = {"CALIB_LIMIT": "8", "FIT_LIMIT": "8", "EVAL_LIMIT": "8", "SPEED": "false"}
# What each command of ours leaves behind, in the tutorial's order, and its exit code: one slide settles no budget.
LEAVES = {
    "atlas-export student": ("bundle/manifest.json", 0),
    "atlas-export verify": ("bundle/manifest.json", 0),
    "atlas-bench selftest": ("selftest.md", 0),
    "atlas-bench accuracy": ("report/report.html", 3),
    "atlas-embed scans": ("embeddings/two.h5", 0),
    "atlas-bench slide-check": ("drawn/one.png", 0),
}


def test_tutorial(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("openvino", "nncf", "timm", "tifffile", "imagecodecs", "h5py", "sklearn"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    slides, reading = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    lines = shell_lines(TEXT, "sh")
    assert lines.pop(0) == "cp -r src/atlas_edge/weights/atlas2-demo student"
    shutil.copytree(ROOT / "src/atlas_edge/weights/atlas2-demo", "student")
    lines.remove("sha256sum report/report.json")
    assert [" ".join(line.split()[:2]) for line in lines] == list(LEAVES)

    exec(slides.replace("5000, 4000", "1500, 1200"), {})
    environment = {f"ATLAS_EXPORT_{name}": value for name, value in SMALL.items()}
    environment |= {"ATLAS_BENCH_LIMIT": "8", "ATLAS_BENCH_SPEED": "false", "ATLAS_BENCH_STRESS_TILES": "2"}
    environment |= {"OMP_NUM_THREADS": "1"}
    for line, (made, code) in zip(lines, LEAVES.values(), strict=True):
        words = shlex.split(line.replace("--tiles 64", "--tiles 8"))
        assert words[0] in COMMANDS
        done = run_command(*words, cwd=tmp_path, **environment)
        assert done.returncode == code, f"{line}\n{done.stderr}"
        assert Path(made).is_file()

    digest = sha256(Path("report/report.json").read_bytes()).hexdigest()
    page = Path("report/report.html").read_text(encoding="utf-8")
    assert digest in page and "INCONCLUSIVE" in page and "36" in page
    exec(reading, {})
    count, width = map(int, re.findall(r"\d+", capsys.readouterr().out)[:2])
    assert count > 4 and width == 192
