"""The BioImage Model Zoo's own test, of the folder that `atlas-export layout --layout bioimageio` writes."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from atlas_edge.bench.conformance.checks.runtimes import exact_here, saturation
from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.spec import Target

# Its program may lie in an environment of its own: bioimageio.core 0.11 wants another pydantic.
_PROGRAM = "bioimageio"
_TIMEOUT_S = 600.0
_NUMBER = re.compile(r"bioimageio\.core (\d\S*)")
_MOST_SAID = 200


def _test(subject: Subject) -> Answer:
    if subject.onnx is None:
        raise Skip("this bundle holds no ONNX graph")
    with tempfile.TemporaryDirectory() as folder:
        zoo = Path(folder) / "zoo"
        # Nothing that lies in the folder where somebody stands is run.
        layout = (
            "-P",
            "-m",
            "atlas_edge.export",
            "layout",
            str(subject.bundle),
            "--layout",
            "bioimageio",
            "--out",
            str(zoo),
        )
        written = _run(sys.executable, *layout)
        if written.returncode:
            raise Skip(f"atlas-export layout: {_last_words(written)}")
        done = _run(str(shutil.which(_PROGRAM)), "test", str(zoo / "rdf.yaml"))
    if done.returncode:
        return Answer(passed=False, said=_last_words(done), known=saturation(subject, Target.ONNX))
    return Answer(passed=True, said=exact_here(subject, Target.ONNX))


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False)


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    return f"ended with {done.returncode}: {' '.join((done.stderr or done.stdout).split())[-_MOST_SAID:]}"


def _version() -> str | None:
    program = shutil.which(_PROGRAM)
    if program is None:
        return None
    # It has no --version, and says it in its help.
    found = _NUMBER.search(_run(program, "-h").stdout)
    return "of no version" if found is None else found[1]


CHECKS = (
    Check(
        program="bioimageio",
        distribution="bioimageio.core",
        asked="test",
        run=_test,
        command="atlas-export layout BUNDLE --layout bioimageio --out ZOO   # then bioimageio test ZOO/rdf.yaml",
        version=_version,
    ),
)
