"""Folders for model servers, against what the servers' own descriptions of them take."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.bench.selftest.run import write_selftest
from atlas_edge.bundle import read_manifest, sha256_file, write_manifest
from atlas_edge.cli import run_app
from atlas_edge.errors import UsageError
from atlas_edge.export.cli import app
from atlas_edge.export.faces.layouts import COMPONENT, ovms_config, triton_config, write_layout
from atlas_edge.manifest import Execution, Manifest
from atlas_edge.runtimes.torch import TorchEncoder
from atlas_edge.spec import TokenGrid

# Of a model's `config` in OVMS's src/schema.cpp (August 2026).
OVMS = {
    "type": "object",
    "required": ["name"],
    "properties": {
        **{name: {"type": "string"} for name in ("name", "base_path", "graph_path", "subconfig", "target_device")},
        "batch_size": {"type": ["integer", "string"], "minimum": 0},
        "nireq": {"type": "integer", "minimum": 0},
        "allow_cache": {"type": "boolean"},
        "plugin_config": {
            "type": "object",
            "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "boolean"}, {"type": "number"}]},
        },
    },
    "additionalProperties": False,
}


def parsed(text: str) -> object:
    """Read `config.pbtxt` as protobuf does: fields of Triton's model_config.proto (July 2026), others are refused."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for number, name in ((0, "INVALID"), (2, "UINT8"), (6, "INT8"), (10, "FP16"), (11, "FP32"), (14, "BF16")):
        kinds.value.add(name=f"TYPE_{name}", number=number)
    strings, integers = field.TYPE_STRING, field.TYPE_INT64
    messages = {
        "ModelInput": [("name", 1, strings), ("data_type", 2, "DataType"), ("dims", 4, [integers])],
        "ModelOutput": [("name", 1, strings), ("data_type", 2, "DataType"), ("dims", 3, [integers])],
        "ModelDynamicBatching": [("preferred_batch_size", 1, [field.TYPE_INT32]),
                                 ("max_queue_delay_microseconds", 2, field.TYPE_UINT64)],
        "ModelParameter": [("string_value", 1, strings)],
        "ParametersEntry": [("key", 1, strings), ("value", 2, "ModelParameter")],
        "ModelConfig": [("name", 1, strings), ("platform", 2, strings), ("backend", 17, strings),
                        ("max_batch_size", 4, field.TYPE_INT32), ("input", 5, ["ModelInput"]),
                        ("output", 6, ["ModelOutput"]), ("dynamic_batching", 11, "ModelDynamicBatching"),
                        ("parameters", 14, ["ParametersEntry"])],
    }  # fmt: skip
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            repeated, kind = isinstance(kind, list), kind[0] if isinstance(kind, list) else kind
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            one = made.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                one.type_name = f".inference.{kind}"
                one.type = field.TYPE_ENUM if kind == "DataType" else field.TYPE_MESSAGE
            else:
                one.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    return text_format.Parse(text, config)


def changed(manifest: Manifest, model_file: str, **more: object) -> Manifest:
    return manifest.model_copy(update={"execution": Execution(model_file=model_file, **more)})


@pytest.mark.parametrize(
    ("model_file", "more", "backend", "most", "dims"),
    [
        ("model.xml", {}, "openvino", 64, [32, 32, 3]),
        ("model.onnx", {"batch": 8}, "onnxruntime", 0, [8, 32, 32, 3]),
        ("model.engine", {"batch_profile": (1, 16, 48)}, "tensorrt", 48, [32, 32, 3]),
    ],
)
def test_triton_s_configuration_is_one(
    model_file: str, more: dict[str, object], backend: str, most: int, dims: list[int], bundle: Path
) -> None:
    manifest = changed(read_manifest(bundle), model_file, **more)
    config = parsed(triton_config(manifest))
    assert (config.backend, config.max_batch_size) == (backend, most)
    assert [(port.name, port.data_type, list(port.dims)) for port in config.input] == [("tiles", 2, dims)]
    assert [(port.name, port.data_type, list(port.dims)) for port in config.output] == [
        ("embedding", 11, [*dims[:-3], 64])
    ]
    # Triton gathers requests along a batch that is not among the dimensions.
    assert config.HasField("dynamic_batching") == bool(most)
    said = {entry.key: entry.value.string_value for entry in config.parameters}
    assert said["atlas_edge_mean"] == "0.5, 0.5, 0.5" and "WRONG" in said["atlas_edge_notice"]
    grid = TokenGrid(rows=4, columns=4, channels=64)
    tokens = manifest.model_copy(update={"encoder": manifest.encoder.model_copy(update={"tokens": grid})})
    assert [list(port.dims)[-2:] for port in parsed(triton_config(tokens)).output][1] == [16, 64]


def test_a_server_finds_its_files(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert run_app(app, ["layout", str(bundle), "--layout", "ovms", "--out", str(tmp_path / "ovms")]) == 0
    said = capsys.readouterr()
    assert "WARNING: plain OpenVINO" in " ".join(said.err.split()) and "tiny-vit-int8, version 1, for ovms" in said.out
    (listed,) = json.loads((tmp_path / "ovms" / "config.json").read_text())["model_config_list"]
    jsonschema.validate(listed["config"], OVMS)
    folder = tmp_path / "ovms" / listed["config"]["base_path"] / "1"
    write_layout(bundle, tmp_path / "triton", layout="triton")
    assert (tmp_path / "triton" / "tiny-vit-int8" / "config.pbtxt").is_file()
    for place in (folder, tmp_path / "triton" / "tiny-vit-int8" / "1"):
        assert {path.name: path.read_bytes() for path in place.iterdir()} == {
            name: (bundle / name).read_bytes() for name in ("model.xml", "model.bin")
        }
    with pytest.raises(UsageError, match="--overwrite"):
        write_layout(bundle, tmp_path / "triton", layout="triton")
    write_layout(bundle, tmp_path / "triton", layout="triton", overwrite=True)


def test_engines_and_weights_beside_the_graph(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    for name, files in (("engine", ["model.engine"]), ("large", ["model.onnx", "model.onnx.data"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(file.encode())
        write_manifest(tmp_path / name, changed(manifest, files[0]))
        write_layout(tmp_path / name, tmp_path / f"{name}-out", layout="triton")
    version = Path("tiny-vit-int8") / "1"
    assert [path.name for path in (tmp_path / "engine-out" / version).iterdir()] == ["model.plan"]
    assert sorted(path.name for path in (tmp_path / "large-out" / version).iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    with pytest.raises(UsageError, match="OVMS runs no TensorRT engines"):
        write_layout(tmp_path / "engine", tmp_path / "out", layout="ovms")
    shutil.rmtree(tmp_path / "engine-out")
    for more, said in (
        ({"engine_library": "tensorrt_rtx"}, "Triton runs engines of TensorRT, and this one is of TensorRT-RTX"),
        ({"engine_library": "tensorrt", "engine_options": ("strip_weights",)}, "holds no weights"),
    ):
        write_manifest(tmp_path / "engine", changed(manifest, "model.engine", **more))
        with pytest.raises(UsageError, match=said):
            write_layout(tmp_path / "engine", tmp_path / "out", layout="triton")
    odd = manifest.model_copy(update={"encoder": manifest.encoder.model_copy(update={"name": 'a "model" / of µ'})})
    assert parsed(triton_config(odd)).name == "a-model-of-int8"
    assert json.loads(ovms_config(odd))["model_config_list"][0]["config"]["name"] == "a-model-of-int8"


def test_onnx_runtime_opens_its_model_package(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime, "ModelPackageContext"):
        pytest.skip("this ONNX Runtime reads no model packages")
    from small_graph import DIM, TILE_PX, write_small_graph

    folder, out = tmp_path / "bundle", tmp_path / "package"
    folder.mkdir()
    graph = write_small_graph(folder / "model.onnx")
    write_manifest(folder, changed(read_manifest(bundle), "model.onnx"))
    words = ["layout", str(folder), "--layout", "onnxruntime", "--out", str(out)]
    assert run_app(app, words) == 0 and "tiny-vit-int8, for onnxruntime" in capsys.readouterr().out
    package = onnxruntime.ModelPackageContext(str(out))
    assert package.get_component_names() == [COMPONENT] and "cuda" in package.get_variant_names(COMPONENT)
    asked = onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())
    session = package.select_component(COMPONENT, asked).create_session()
    tiles = np.random.default_rng(0).integers(0, 256, (2, TILE_PX, TILE_PX, 3), dtype=np.uint8)
    plain = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (found,), (wanted,) = (opened.run(None, {"tiles": tiles}) for opened in (session, plain))
    np.testing.assert_array_equal(found, wanted)
    assert found.shape == (2, DIM)
    # It is replaced by another one; a bundle, which has a manifest.json too, never is.
    assert run_app(app, words) == 2 and run_app(app, [*words, "--overwrite"]) == 0
    other = shutil.copytree(folder, tmp_path / "other")
    assert run_app(app, [*words[:-1], str(other), "--overwrite"]) == 2
    with pytest.raises(UsageError, match="holds ONNX graphs"):
        write_layout(bundle, tmp_path / "out", layout="onnxruntime")


def test_the_model_zoo_s_description_holds_what_it_is_tested_by(tiny_model: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from atlas_edge.models.graph import export_onnx
    from atlas_edge.models.load import load_model
    from bundles import plain_manifest

    folder, out = tmp_path / "bundle", tmp_path / "zoo"
    folder.mkdir()
    model = load_model(str(tiny_model))
    export_onnx(model.module, model.spec, folder / "model.onnx")
    write_selftest(folder, TorchEncoder(model.module, model.spec))
    (folder / "README.md").write_text("# tiny\n")
    write_manifest(folder, plain_manifest(model))
    write_layout(folder, out, layout="bioimageio")
    told = json.loads((out / "rdf.yaml").read_text())
    (given,), (wanted,) = told["inputs"], told["outputs"]
    for file in (given["test_tensor"], wanted["test_tensor"], told["weights"]["onnx"]):
        assert sha256_file(out / file["source"]) == file["sha256"]
    assert (told["license"], told["weights"]["onnx"]["opset_version"]) == ("CC0-1.0", 20)
    assert [axis.get("size") for axis in given["axes"]] == [None, 32, 32, None] and wanted["axes"][1]["size"] == 64
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {given["id"]: np.load(out / given["test_tensor"]["source"])})
    np.testing.assert_allclose(found, np.load(out / wanted["test_tensor"]["source"]), atol=1e-4)
    try:
        from bioimageio.core import test_model
    except ImportError:
        return
    assert test_model(out / "rdf.yaml").status == "passed"
