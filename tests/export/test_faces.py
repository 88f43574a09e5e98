"""A bundle's graph behind the input that another program feeds, in the plain runtime that such a program uses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bundle import MANIFEST, read_manifest, sha256_file, write_manifest
from atlas_edge.cli import run_app
from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.export.cli import app
from atlas_edge.export.faces.graph import Face, write_face
from atlas_edge.export.graph.openvino_file import save_openvino
from atlas_edge.manifest import Execution
from atlas_edge.quantize.backend import Job, Quantized, backend_of
from atlas_edge.spec import EncoderSpec, Precision, Target

onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
FACES = get_args(Face)


@pytest.fixture(scope="module")
def bundles(bundle: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The OpenVINO bundle in INT8, and its network in ONNX, at full precision."""
    pytest.importorskip("torch")
    from atlas_edge.models.graph import export_onnx
    from atlas_edge.models.load import load_model

    folder = tmp_path_factory.mktemp("faces") / "onnx"
    folder.mkdir()
    model = load_model(str(tiny_model))
    export_onnx(model.module, model.spec, folder / "model.onnx")
    changed = {"target": Target.ONNX, "precision": Precision.FP32, "execution": Execution(model_file="model.onnx")}
    write_manifest(folder, read_manifest(bundle).model_copy(update={**changed, "notice": None}))
    return {"openvino": bundle, "onnx": folder}


def plain(path: Path) -> tuple[Callable[[NDArray[Any]], NDArray[np.float32]], dict[str, str], list[Any]]:
    """A model file in its runtime's own hands: what it computes, its metadata, name, type and shape of its input."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (port,) = session.get_inputs()
        props = session.get_modelmeta().custom_metadata_map
        return lambda x: session.run(None, {port.name: x})[0], props, [port.name, port.type, port.shape[1:]]
    core = openvino.Core()
    model = core.read_model(str(path))
    notes = {key: value.value for key, value in model.get_rt_info().items() if key.startswith("atlas_edge")}
    port = model.inputs[0]
    shape = [size.get_length() for size in list(port.partial_shape)[1:]]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: compiled([x])[0], notes, [port.any_name, port.element_type.get_type_name(), shape]


def fed(tiles: NDArray[np.uint8], face: str, spec: EncoderSpec) -> NDArray[np.float32]:
    """What a program that has these tiles feeds."""
    images = tiles.transpose(0, 3, 1, 2).astype(np.float32)
    if face == "nchw-float-0-255":
        return images
    mean, std = (np.array(part, np.float32).reshape(1, 3, 1, 1) for part in (spec.mean, spec.std))
    return images / 255 if face == "nchw-float-0-1" else (images / 255 - mean) / std


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("face", FACES)
def test_a_face_embeds_as_the_graph_behind_it(
    target: str, face: Face, bundles: dict[str, Path], tiny_tiles: NDArray[np.uint8], tmp_path: Path
) -> None:
    made_of = bundles[target]
    manifest = read_manifest(made_of)
    spec, name = manifest.encoder, manifest.execution.model_file
    notes = write_face(made_of, tmp_path / "face", face=face)
    computes, found, port = plain(tmp_path / "face" / name)
    kind = "tensor(float)" if target == "onnx" else "f32"
    assert port == ["images", kind, [3, spec.tile_px, spec.tile_px]]
    wanted = plain(made_of / name)[0](tiny_tiles)
    np.testing.assert_allclose(computes(fed(tiny_tiles, face, spec)), wanted, rtol=1e-4, atol=1e-4)
    # What it is lies in it, and beside it.
    assert {key: found[key] for key in notes} == notes == json.loads((tmp_path / "face" / "face.json").read_text())
    assert notes["atlas_edge_manifest_sha256"] == sha256_file(made_of / MANIFEST)
    assert notes["atlas_edge_mean"] == "0.5, 0.5, 0.5" and notes["atlas_edge_tile_px"] == str(spec.tile_px)
    assert notes["atlas_edge_licence"] == "cc0-1.0" and face in notes["atlas_edge_input"]
    assert notes["atlas_edge_normalisation"].startswith("outside" if face.endswith("normalised") else "inside")
    # Another face's input is another image.
    other = fed(tiny_tiles, FACES[FACES.index(face) - 1], spec)
    assert np.abs(computes(other) - wanted).max() > 0.01


@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO])
def test_every_model_file_says_what_it_takes(
    target: Target, bundles: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    from atlas_edge.models.load import load_model

    graph: Any = bundles["onnx"] / "model.onnx"
    loaded = load_model(str(tiny_model))
    ranged = replace(loaded, spec=loaded.spec.model_copy(update={"mpp_range": (0.25, 2.0)}))
    job = Job(model=ranged, graph=graph, calibration=[], precision=Precision.INT8)
    model = graph if target is Target.ONNX else openvino.Core().read_model(str(graph))
    execution = backend_of(target).write(job, Quantized(model=model), tmp_path)
    _, notes, _ = plain(tmp_path / execution.model_file)
    assert notes["atlas_edge_input"] == "tiles (B, 32, 32, 3) uint8 RGB" and notes["atlas_edge_embed_dim"] == "64"
    assert notes["atlas_edge_std"] == "0.5, 0.5, 0.5" and notes["atlas_edge_pooling"] == "cls"
    assert "saturation" in notes["atlas_edge_notice"] and "atlas_edge_mpp" not in notes
    assert notes["atlas_edge_mpp_range"] == "0.25, 2.0"


def test_what_has_no_face_is_said(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "model.engine").write_bytes(b"engine")
    manifest = read_manifest(bundles["onnx"])
    write_manifest(engine, manifest.model_copy(update={"execution": Execution(model_file="model.engine")}))
    with pytest.raises(UsageError, match="holds an engine"):
        write_face(engine, tmp_path / "out", face="nchw-float-0-1")
    (engine / "model.engine").write_bytes(b"other!")
    with pytest.raises(ChecksumError):
        write_face(engine, tmp_path / "out", face="nchw-float-0-1")
    asked = ["face", str(bundles["onnx"]), "--face", "nchw-float-0-1", "--out", str(tmp_path / "out")]
    assert run_app(app, asked) == 0
    assert "images (B, 3, 32, 32) float32, nchw-float-0-1, normalisation inside" in capsys.readouterr().out
    assert run_app(app, asked) == 2 and "--overwrite" in capsys.readouterr().err
    assert run_app(app, [*asked, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["atlas_edge_name"] == "tiny-vit"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "out"]


def test_a_bundle_stays_as_its_manifest_says(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "package"
    assert run_app(app, ["pack", str(bundle), "--out", str(package), "-q"]) == 0
    (variant,) = (path for path in package.iterdir() if path.is_dir())
    for command in (["face", "--face", "nchw-float-0-1"], ["layout", "--layout", "ovms"]):
        for made_of, out in ((bundle, bundle / "more"), (variant, variant / "more"), (variant, package / "more")):
            assert run_app(app, [command[0], str(made_of), *command[1:], "--out", str(out)]) == 2
            assert "nothing but what its manifest lists" in capsys.readouterr().err and not out.exists()
    # What INT8 does in a plain runtime is said where the file is made for one.
    assert run_app(app, ["face", str(variant), "--face", "nchw-float-0-1", "--out", str(tmp_path / "out")]) == 0
    assert "WARNING: plain OpenVINO" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_is_no_bug(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"model\.xml cannot be written.*\n.*free disk space"):
        save_openvino(openvino.Core().read_model(str(bundle / "model.xml")), tmp_path / "model.xml")
