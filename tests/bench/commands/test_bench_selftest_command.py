import json
from pathlib import Path

import pytest

from atlas_edge.bench.commands.selftest import selftest
from atlas_edge.bench.selftest.run import write_selftest
from atlas_edge.bundle import write_manifest
from atlas_edge.cli import make_app, run_app
from atlas_edge.manifest import Execution, Manifest
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import load_model
from atlas_edge.runtimes.torch import TorchEncoder
from atlas_edge.spec import Precision, Target


@pytest.fixture(scope="module")
def bundles(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle that is sound, and one whose stored embeddings are another model's."""
    model, other = load_model(str(tiny_model)), load_model(str(tiny_model), seed=1)
    for parameter in other.module.parameters():
        parameter.data.mul_(1.5)
    made = {}
    for name, reference in (("sound", model), ("broken", other)):
        folder = tmp_path_factory.mktemp(name)
        export_onnx(model.module, model.spec, folder / "model.onnx")
        write_selftest(folder, TorchEncoder(reference.module, reference.spec))
        manifest = Manifest(
            encoder=model.spec,
            target=Target.ONNX,
            precision=Precision.FP32,
            execution=Execution(model_file="model.onnx"),
            versions={},
            command=("atlas-export",),
            config={},
            model=model.provenance,
            files=(),
        )
        write_manifest(folder, manifest)
        made[name] = folder
    return made


@pytest.mark.parametrize(("name", "code"), [("sound", 0), ("broken", 3)])
def test_the_exit_code_says_whether_the_bundle_is_sound(
    bundles: dict[str, Path], name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app("atlas-bench", "Bench.")
    app.command(selftest)
    out = tmp_path / "report" / "selftest"
    assert run_app(app, ["selftest", str(bundles[name]), "--out", str(out), "--no-speed", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is (code == 0)
    assert json.loads(out.with_suffix(".json").read_text())["cases"]["fp32"]["passed"] is (code == 0)
    assert ("PASS" if code == 0 else "FAIL") in out.with_suffix(".md").read_text()
    assert ("fix: send" in printed.err) is (code == 3)
    assert f"Selftest of {bundles[name].name}: {'PASS' if code == 0 else 'FAIL'}" in printed.err
