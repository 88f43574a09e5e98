"""What other people's programs say of a sound bundle, and of planted faults: each is caught, and by whom."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.bench.cli import app
from atlas_edge.bench.conformance.finding import Answer, Check, Outcome, Skip
from atlas_edge.bench.conformance.rows import terminal_rows
from atlas_edge.bench.conformance.run import CHECKS, ask, run_conformance
from atlas_edge.bench.conformance.subject import Subject, read_subject
from atlas_edge.bench.selftest.run import write_selftest
from atlas_edge.bundle import MANIFEST, read_manifest, sha256_file, write_manifest
from atlas_edge.cli import run_app
from atlas_edge.models.graph import copy_onnx, export_onnx
from atlas_edge.models.load import load_model
from atlas_edge.runtimes.plain import model_notes
from atlas_edge.runtimes.torch import TorchEncoder
from atlas_edge.spec import Target
from bundles import plain_manifest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def sound(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX bundle at full precision, with its selftest and what it says of itself."""
    folder = tmp_path_factory.mktemp("conformance") / "sound"
    folder.mkdir()
    model = load_model(str(tiny_model))
    plain = export_onnx(model.module, model.spec, folder.parent / "plain.onnx")
    copy_onnx(plain, folder / "model.onnx", notes=model_notes(model.spec, model.provenance.licence, notice=None))
    write_selftest(folder, TorchEncoder(model.module, model.spec))
    write_manifest(folder, plain_manifest(model))
    return folder


def changed(sound: Path, out: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the bundle with another graph, and a manifest that says nothing of it."""
    out.mkdir()
    for path in sound.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    model = onnx.load(out / "model.onnx")
    change(model)
    onnx.save(model, out / "model.onnx")
    (out / MANIFEST).unlink()
    write_manifest(out, read_manifest(sound))
    return out


def wrong_mean(model: Any) -> None:
    (entry,) = (entry for entry in model.metadata_props if entry.key == "atlas_edge_mean")
    entry.value = "0.485, 0.456, 0.406"


def swapped_channels(model: Any) -> None:
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["swapped" if name == "tiles" else name for name in node.input]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0], np.int64), "bgr"))
    graph.node.insert(0, onnx.helper.make_node("Gather", ["tiles", "bgr"], ["swapped"], axis=3))


def other_weights(model: Any) -> None:
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.1), weights.name))


def no_type(model: Any) -> None:
    model.graph.output[0].type.tensor_type.ClearField("elem_type")


EMBEDS = {"atlas-edge", "ONNX Runtime", "OpenVINO", "onnx.reference"}


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        (wrong_mean, {"onnx"}),
        (swapped_channels, EMBEDS),
        (other_weights, EMBEDS),
        (no_type, {"onnx.checker"}),
    ],
)
def test_a_planted_fault_is_caught(sound: Path, tmp_path: Path, fault: Any, caught_by: set[str]) -> None:
    mine = [check for check in CHECKS if check.program not in ("Polygraphy", "TensorRT-RTX", "TensorRT", "bioimageio")]
    report = run_conformance(read_subject(changed(sound, tmp_path / "faulty", fault)), checks=mine)
    assert not report.passed
    caught = {finding.program for finding in report.findings if finding.outcome is Outcome.FAIL}
    assert caught_by <= caught and (fault is no_type or caught_by == caught)


def test_weights_that_were_changed_behind_the_manifest_are_shown_to_nobody(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(sound, tmp_path / "tampered", wrong_mean)
    model = bytearray((folder / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "model.onnx").write_bytes(model)
    assert run_app(app, ["conformance", str(folder), "--report", str(tmp_path / "report")]) == 5
    assert "SHA-256" in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_a_sound_bundle_passes_by_all_and_is_written(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, data = tmp_path / "report", tmp_path / "data"
    words = ["conformance", str(sound), "--report", str(report), "--test-data", str(data), "--json"]
    assert run_app(app, words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == json.loads((report / "conformance.json").read_text())
    passed = {one["program"] for one in found["findings"] if one["outcome"] == "PASS"}
    assert passed >= {*EMBEDS, "onnx", "onnx.checker", "onnx.shape_inference"}
    assert all(one["said"] for one in found["findings"] if one["outcome"] == "SKIPPED")
    page = (report / "conformance.html").read_text(encoding="utf-8")
    for part in (sha256_file(sound / MANIFEST), sha256_file(report / "conformance.json"), "signature", "default-src"):
        assert part in page, part
    assert str(sound.parent) not in page + printed.out
    # As onnx_test_runner goes about it.
    fed, wanted = (
        onnx.numpy_helper.to_array(onnx.load_tensor(data / "test_data_set_0" / name))
        for name in ("input_0.pb", "output_0.pb")
    )
    computed = onnxruntime.InferenceSession(str(data / "model.onnx")).run(None, {"tiles": fed})[0]
    np.testing.assert_allclose(computed, wanted, rtol=1e-3, atol=1e-3)
    assert run_app(app, words) == 2 and "--overwrite" in capsys.readouterr().err
    assert run_app(app, [*words, "--overwrite", "-q"]) == 0
    assert run_app(app, ["conformance", str(sound), "--report", str(sound / "report")]) == 2
    assert "nothing but what its manifest lists" in capsys.readouterr().err


def say(answer: Answer | Exception, distribution: str = "numpy") -> Check:
    def run(subject: Subject) -> Answer:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Check(program="one", distribution=distribution, asked="it", run=run, command="one MODEL")


def test_whatever_a_program_does_is_an_answer(sound: Path) -> None:
    subject = read_subject(sound)
    cases: list[tuple[Check, Outcome, str]] = [
        (say(Answer(passed=True), "no-such-thing"), Outcome.SKIPPED, "no-such-thing is not installed"),
        (say(Skip("not here")), Outcome.SKIPPED, "not here"),
        (say(RuntimeError(f"{sound}/model.onnx:\n  bad")), Outcome.FAIL, "RuntimeError: sound/model.onnx: bad"),
        (say(RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Add")), Outcome.SKIPPED, "has no code for it"),
        (say(Answer(passed=False, said="no", known="why")), Outcome.FAIL, "no"),
        (say(Answer(passed=True, said="yes", known="why")), Outcome.PASS, "yes"),
    ]
    for check, outcome, said in cases:
        finding = ask(check, subject)
        assert finding.outcome is outcome and said in finding.said
        assert finding.known == ("why" if finding.said == "no" else None)
    report = run_conformance(subject, checks=[check for check, _, _ in cases])
    assert "FAIL (1 PASS, 2 FAIL, 3 SKIPPED)" in terminal_rows(report).title
    assert any("known: why" in note for note in terminal_rows(report).notes)


def test_int8_in_a_plain_runtime_is_shown_as_what_it_is(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file: right in ours, and elsewhere by the processor; what is known of that stands with it."""
    from atlas_edge.bench.conformance.checks import runtimes

    subject = read_subject(bundle)
    asked = {check.asked: check for check in runtimes.CHECKS}
    monkeypatch.setattr(runtimes, "saturates_here", lambda: True)
    in_float = ask(asked["embeddings, sums in float"], subject)
    assert in_float.outcome is Outcome.PASS and in_float.figures is not None
    notice = runtimes.saturation(subject, Target.OPENVINO)
    assert notice is not None and "saturation" in notice
    plain = ask(asked["embeddings, benchmark_app"], subject)
    assert plain.figures is not None and (plain.known is not None) == (plain.outcome is Outcome.FAIL)
    assert ask(asked["embeddings, its defaults"], subject).said == "this bundle holds no ONNX graph"
    monkeypatch.setattr(runtimes, "saturates_here", lambda: False)
    here = "this processor adds 8-bit products exactly"
    skipped, plain = (ask(asked[f"embeddings, {how}"], subject) for how in ("sums in float", "benchmark_app"))
    assert skipped.outcome is Outcome.SKIPPED and here in skipped.said and here in plain.said
    # Weights of 7 bits are right on any: there is nothing to say.
    execution = subject.manifest.execution.model_copy(update={"portable": True})
    portable = replace(subject, manifest=subject.manifest.model_copy(update={"execution": execution}))
    assert ask(asked["embeddings, benchmark_app"], portable).said == ""
    assert "on any processor" in ask(asked["embeddings, sums in float"], portable).said


def test_a_signature_is_asked_about_where_there_is_one(sound: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from atlas_edge.bench.conformance.checks.signing import CHECKS as SIGNING
    from atlas_edge.package.signature import sign_folder, signature_beside

    folder = changed(sound, tmp_path / "bundle", lambda model: None)
    key, public = ec.generate_private_key(ec.SECP256R1()), tmp_path / "key.pub"
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    (check,) = SIGNING
    subject = read_subject(folder, public_key=public)
    unsigned, asked = ask(check, read_subject(folder)), ask(check, subject)
    assert "no bundle.sig beside" in unsigned.said == asked.said
    assert (unsigned.outcome, asked.outcome) == (Outcome.SKIPPED, Outcome.FAIL)
    sign_folder(folder, signature_beside(folder), private_key=tmp_path / "key.pem")
    assert ask(check, read_subject(folder)).outcome is Outcome.SKIPPED
    assert ask(check, subject).outcome is Outcome.PASS
    # Changed together with the manifest: hashes match, and the signature does not.
    (folder / MANIFEST).unlink()
    (folder / "model.onnx").write_bytes((sound / "model.onnx").read_bytes() + b"\0\0")
    write_manifest(folder, read_manifest(sound))
    forged = ask(check, read_subject(folder, public_key=public))
    assert forged.outcome is Outcome.FAIL and "key.pub signed" in forged.said
    # A key that is none is told before anybody is asked.
    (tmp_path / "text.pub").write_text("no key")
    words = ["conformance", str(folder), "--public-key"]
    assert run_app(app, [*words, str(tmp_path / "none.pub")]) == 2
    assert run_app(app, [*words, str(tmp_path / "text.pub")]) == 5


def test_what_polygraphy_lacks_is_no_verdict_about_the_file(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.bench.conformance.checks import polygraphy

    words = "[E] Module: 'onnx_graphsurgeon' could not be imported. Error was: No module named 'onnx_graphsurgeon'"
    ended = subprocess.CompletedProcess(args=[], returncode=1, stdout="", stderr=words)
    monkeypatch.setattr(polygraphy, "_polygraphy", lambda *arguments: ended)
    lint = replace(polygraphy.CHECKS[0], distribution="numpy")
    finding = ask(lint, read_subject(sound))
    assert (finding.outcome, finding.said) == (Outcome.SKIPPED, "it needs onnx_graphsurgeon, which is not installed")
    ended.stderr = "[E] no such model"
    assert ask(lint, read_subject(sound)).outcome is Outcome.FAIL
