import json
import shutil
import socket
from pathlib import Path

import pytest

from atlas_edge.bench.commands.selftest import selftest
from atlas_edge.bench.selftest.run import write_selftest
from atlas_edge.bundle import write_manifest
from atlas_edge.cli import make_app, run_app
from atlas_edge.export.packing.pack import pack_bundles
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import load_model
from atlas_edge.package import choice as remembering
from atlas_edge.runtimes.torch import TorchEncoder
from bundles import plain_manifest


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
        write_manifest(folder, plain_manifest(model))
        made[name] = folder
    return made


def test_one_file_holds_the_whole_workstation(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remembering, "user_cache", lambda: tmp_path / "cache")
    app = make_app("atlas-bench", "Bench.")
    app.command(selftest)
    package, out = tmp_path / "<package>", tmp_path / "report.html"
    pack_bundles([bundles["sound"]], package)
    assert run_app(app, ["selftest", str(package), "--out", str(out), "--no-speed"]) == 0
    page = out.read_text(encoding="utf-8")
    for part in (
        "Selftest of &lt;package&gt;/onnx-fp32",
        "PASS",
        "This machine",
        "Variants of",
        "For support: atlas-edge ",
    ):
        assert part in page, part
    assert "<package>" not in page and socket.gethostname() not in page
    assert {path.name for path in tmp_path.iterdir()} == {"<package>", "report.html", "cache"}


def test_what_keeps_the_selftest_from_running_is_written_and_raised(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app("atlas-bench", "Bench.")
    app.command(selftest)
    arguments = ["selftest", str(bundles["sound"]), "--out", str(tmp_path / "report.json"), "--device", "cuda"]
    assert run_app(app, arguments) == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is False and "cuda" in report["error"] and report["checks"] and report["advice"]["support"]
    broken = tmp_path / "named-after-a-person" / "bundle"
    shutil.copytree(bundles["sound"], broken)
    (broken / "model.onnx").write_bytes(b"x")
    assert run_app(app, ["selftest", str(broken), "--out", str(tmp_path / "broken.md")]) == 5
    text = (tmp_path / "broken.md").read_text()
    assert "NOT RUN: bundle: model.onnx has 1 bytes" in text and "named-after-a-person" not in text
    assert "error: --device cuda" in capsys.readouterr().err
    assert run_app(app, ["selftest", str(tmp_path), "--out", str(tmp_path / "none.json")]) == 5
    assert run_app(app, [*arguments[:2], "--rounds", "0", "--out", str(tmp_path / "none.json")]) == 2
    assert not (tmp_path / "none.json").exists()
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert run_app(app, [*arguments[:2], "--no-speed", "--out", str(tmp_path / "file" / "report.html")]) == 5
    assert "Selftest of " in capsys.readouterr().err


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
