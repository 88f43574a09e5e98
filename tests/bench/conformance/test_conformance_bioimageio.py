"""What the BioImage Model Zoo's own test says: asked where its program is on the path, of the folder that we write."""

import json
import stat
import sys
from pathlib import Path

import pytest

from atlas_edge.bench.conformance.checks.bioimageio import CHECKS
from atlas_edge.bench.conformance.finding import Finding, Outcome
from atlas_edge.bench.conformance.run import ask
from atlas_edge.bench.conformance.subject import read_subject
from atlas_edge.bench.selftest.run import write_selftest
from atlas_edge.bundle import write_manifest
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import load_model
from atlas_edge.runtimes.torch import TorchEncoder
from bundles import plain_manifest
from support import ROOT

pytest.importorskip("onnxruntime")

# Takes what the published one takes (bioimageio.core 0.11), runs the model on the test tiles, and compares.
STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime

if sys.argv[1:] == ["-h"]:
    print("usage: bioimageio [-h]\\nlibrary versions:\\n  bioimageio.core 0.11.0\\n  bioimageio.spec 0.5.12.0")
    raise SystemExit
assert sys.argv[1] == "test"
rdf = Path(sys.argv[2])
model = json.loads(rdf.read_text())
(made,) = (entry["test_tensor"]["source"] for entry in model["outputs"])
(given,) = (entry["test_tensor"]["source"] for entry in model["inputs"])
graph = onnxruntime.InferenceSession(rdf.parent / model["weights"]["onnx"]["source"])
(found,) = graph.run(None, {graph.get_inputs()[0].name: np.load(rdf.parent / given)})
expected = np.load(rdf.parent / made)
close = np.allclose(found, expected + BROKEN, atol=1e-3)
print("passed" if close else "failed: output is not close")
raise SystemExit(not close)
"""


@pytest.fixture
def bundle(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    model = load_model(str(tiny_model))
    export_onnx(model.module, model.spec, folder / "model.onnx")
    write_selftest(folder, TorchEncoder(model.module, model.spec))
    (folder / "README.md").write_text("# A tiny encoder\n", encoding="utf-8")
    write_manifest(folder, plain_manifest(model))
    return folder


def asked(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: str = "0") -> Finding:
    program = tmp_path / "bin" / "bioimageio"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{STAND_IN.replace('BROKEN', broken)}", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return ask(CHECKS[0], read_subject(bundle))


@pytest.mark.skipif(sys.platform == "win32", reason="a stand-in that begins with #! runs elsewhere")
@pytest.mark.parametrize(("broken", "outcome"), [("0", Outcome.PASS), ("1", Outcome.FAIL)])
def test_it_is_asked_of_the_folder_that_we_write(
    broken: str, outcome: Outcome, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(bundle, tmp_path, monkeypatch, broken=broken)
    assert (found.outcome, found.version) == (outcome, "0.11.0"), json.dumps(found.said)
    assert outcome is Outcome.PASS or "output is not close" in found.said


def test_a_machine_without_it_is_told_so(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = ask(CHECKS[0], read_subject(bundle))
    assert found.outcome is Outcome.SKIPPED and "not installed" in found.said
