"""NVIDIA's Polygraphy, as its command line runs."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from atlas_edge.bench.conformance.checks.runtimes import exact_here, saturation
from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.models.graph import onnx_bytes
from atlas_edge.spec import INPUT, OUTPUT, Target

_TIMEOUT_S = 600.0
# It makes a session of each node: a minute for a ViT-S.
_MOST_LINT_BYTES = 200_000_000
_TILES = 8
# Libraries that pip does not bring with it: it says so, and ends with 1.
_LACKING = re.compile(r"No module named '(\w+)'")
# Its package is no program; its console script says no more than this.
_MAIN = "import sys; from polygraphy.tools import main; sys.exit(main())"


def _lint(subject: Subject) -> Answer:
    graph = _graph(subject)
    size = onnx_bytes(graph)
    if size > _MOST_LINT_BYTES:
        raise Skip(f"{size / 1e6:.0f} MB: it takes networks of up to {_MOST_LINT_BYTES / 1e6:.0f} MB here")
    side = subject.manifest.encoder.tile_px
    batch = subject.manifest.execution.batch or 1
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lint.json"
        shape = f"{INPUT}:[{batch},{side},{side},3]"
        done = _polygraphy("check", "lint", str(graph), "--input-shapes", shape, "-o", str(report))
        if not report.is_file():
            if (lacking := _LACKING.search(done.stderr + done.stdout)) is not None:
                raise Skip(f"it needs {lacking[1]}, which is not installed")
            return Answer(passed=False, said=_last_words(done))
        found = json.loads(report.read_bytes())
    errors = [entry["message"] for entry in found["lint_entries"] if entry["level"] == "exception"]
    warnings = len(found["lint_entries"]) - len(errors)
    passing, failing = (len(found["summary"][key]) for key in ("passing", "failing"))
    said = f"{passing} nodes pass, {failing} fail, {warnings} warnings" + "".join(f"; {text}" for text in errors[:2])
    return Answer(passed=done.returncode == 0 and not errors and not failing, said=said)


def _run(subject: Subject) -> Answer:
    from polygraphy.json import load_json, save_json

    graph = _graph(subject)
    count = subject.manifest.execution.batch or _TILES
    with tempfile.TemporaryDirectory() as folder:
        fed, given = (str(Path(folder) / name) for name in ("tiles.json", "embeddings.json"))
        save_json([{INPUT: subject.tiles[:count]}], fed)
        done = _polygraphy("run", str(graph), "--onnxrt", "--load-inputs", fed, "--save-outputs", given)
        if done.returncode or not Path(given).is_file():
            return Answer(passed=False, said=_last_words(done))
        ((_, (iteration, *_)),) = load_json(given).items()
        figures = subject.figures(iteration[OUTPUT])
    said, known = exact_here(subject, Target.ONNX), saturation(subject, Target.ONNX)
    return Answer(passed=figures.passed, said=said, figures=figures, known=known)


def _graph(subject: Subject) -> Path:
    if subject.onnx is None:
        raise Skip("this bundle holds no ONNX graph")
    return subject.onnx


def _polygraphy(*arguments: str) -> "subprocess.CompletedProcess[str]":
    # It would fetch what it misses.
    environment = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    command = [sys.executable, "-P", "-c", _MAIN, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False, env=environment
    )


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    return f"ended with {done.returncode}: {' '.join((done.stderr or done.stdout).split())[-200:]}"


CHECKS = (
    Check(
        program="Polygraphy",
        distribution="polygraphy",
        asked="check lint",
        run=_lint,
        command="polygraphy check lint MODEL",
    ),
    Check(
        program="Polygraphy",
        distribution="polygraphy",
        asked="run --onnxrt",
        run=_run,
        command="polygraphy run MODEL --onnxrt --load-inputs TILES --save-outputs embeddings.json",
    ),
)
