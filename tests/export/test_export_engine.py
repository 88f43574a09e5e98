import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.bench.selftest.run import run_selftest
from atlas_edge.bundle import open_bundle, verify_bundle
from atlas_edge.errors import InputError
from atlas_edge.export.engine.build import build_engine
from atlas_edge.export.engine.graphs import engine_graphs
from atlas_edge.export.graph.rules import check_graph
from atlas_edge.export.graph.view import read_onnx
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.quantize.backend import Job
from atlas_edge.quantize.onnx.half import cast_onnx
from atlas_edge.quantize.onnx.half_range import check_half_graph, half_range
from atlas_edge.quantize.recipe import onnx_recipe, save_recipe
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.tensorrt_library import RTX
from atlas_edge.spec import Precision

pytest.importorskip("tensorrt_rtx")
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--calib-limit", "16", "--fit-limit", "32", "--eval-limit", "32", "--no-speed", "--tile-fit", "resize")


@pytest.mark.parametrize(("precision", "beside", "gpus"), [("int8", True, "8.6 8.9 12.0"), ("fp8", True, "8.9 12.0")])
def test_an_engine_bundle_is_written_without_a_gpu(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path, precision: str, beside: bool, gpus: str
) -> None:
    out = tmp_path / "bundle"
    arguments = ("--target", "tensorrt", "--precision", precision, "--batch", "1,4,8", "--out", out, "--json")
    arguments += ("--quantize-attention",) if precision == "int8" else ()
    done = run_command("atlas-export", tiny_model, *arguments, *SMALL)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "cudaError" not in done.stderr
    manifest = verify_bundle(out)
    assert " ".join(manifest.execution.compute_capabilities) == gpus
    assert (out / "fp16" / "model.engine").is_file() is beside
    assert manifest.quantization is not None
    assert manifest.quantization["fp16_range"]["headroom"] > 4
    assert manifest.quantization["attention_products"] == (4 if precision == "int8" else 0)
    report = run_selftest(out / "onnx", speed=False)
    assert report.passed
    assert report.cases[precision].distance_when_made == pytest.approx(report.cases[precision].distance, abs=1e-5)
    tiles = np.zeros((2, 32, 32, 3), np.uint8)
    encoder = open_bundle(out / "fp16" / "onnx")
    assert np.isfinite(encoder.encode(tiles)).all()
    encoder.close()


def test_layers_that_a_recipe_excludes_are_no_breach_of_coverage(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.json", tmp_path / "bundle"
    save_recipe(onnx_recipe().model_copy(update={"exclude": ("blocks.1.mlp.fc2",)}), recipe)
    arguments = ("--target", "tensorrt-rtx", "--precision", "int8", "--recipe", recipe, "--out", out, "--batch", "4")
    done = run_command("atlas-export", tiny_model, *arguments, *SMALL)
    assert done.returncode == 0, done.stderr
    manifest = verify_bundle(out)
    assert manifest.quantization is not None
    assert manifest.quantization["recipe"]["exclude"] == ["blocks.1.mlp.fc2"]
    with pytest.raises(InputError, match="fc2"):
        check_graph(out / "onnx" / "model.onnx", precision=Precision.INT8)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--precision", "fp8", "--compute-capability", "8.6"), 2, "fp8 needs compute capability 8.9"),
        (("--precision", "fp16", "--compute-capability", "9.0"), 2, "takes no compute capability '9.0'"),
        (("--precision", "fp16", "--hardware-compatible"), 2, "has no --hardware-compatible"),
        (("--precision", "fp16", "--timing-cache", "file"), 2, "has no --timing-cache"),
        (("--precision", "fp16", "--quantize-attention"), 2, "--quantize-attention is for"),
    ],
)
def test_an_impossible_engine_is_refused_before_any_work(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    out = tmp_path / "bundle"
    done = run_command("atlas-export", tiny_model, "--target", "tensorrt-rtx", *options, "--out", out, *SMALL)
    assert done.returncode == code
    assert message in done.stderr
    assert "fix:" in done.stderr
    assert not out.exists()


def test_rebuild_answers_in_one_line(run_command: RunCommand, tmp_path: Path) -> None:
    done = run_command("atlas-export", "rebuild", tmp_path)
    assert done.returncode == 5
    assert "is no bundle" in done.stderr


@pytest.fixture(scope="module")
def massive(tiny_model: Path) -> LoadedModel:
    """The tiny model with its residual stream 300,000 times as large, beyond FP16; LayerNorm hides it from all else."""
    import torch

    model = load_model(str(tiny_model))
    backbone = model.module.backbone
    writers = [backbone.patch_embed.proj, *(part for b in backbone.blocks for part in (b.attn.proj, b.mlp.fc2))]
    with torch.no_grad():
        for tensor in (backbone.cls_token, backbone.reg_token, backbone.pos_embed):
            tensor *= 3e5
        for layer in writers:
            layer.weight *= 3e5
            layer.bias *= 3e5
    return model


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8, Precision.FP8])
def test_a_residual_stream_beyond_fp16_stays_in_fp32(
    massive: LoadedModel, tiny_tiles: NDArray[np.uint8], tmp_path: Path, precision: Precision
) -> None:
    full = export_onnx(massive.module, massive.spec, tmp_path / "fp32.onnx")
    graphs = engine_graphs(Job(model=massive, graph=full, calibration=[tiny_tiles], precision=precision), tmp_path)
    assert graphs.quantization is not None
    found = graphs.quantization["fp16_range"]
    assert found["largest_float32"] > 65504 > 4 * found["largest"]
    graph = read_onnx(graphs.model)
    norms = [node for node in graph.nodes if node.op_type == "LayerNormalization"]
    assert [graph.stored_type(node.input[0]) for node in norms] == 5 * [TensorProto.FLOAT]
    gelus = [node for node in graph.nodes if node.op_type == "Gelu"]
    assert [graph.stored_type(node.input[0]) for node in gelus] == 2 * [TensorProto.FLOAT16]
    checked = check_graph(graphs.model, precision=precision)
    assert checked.quantized_linears == (0 if precision is Precision.FP16 else 8)
    reference = OnnxEncoder(full, massive.spec).encode(tiny_tiles)
    agreement = embedding_agreement(reference, OnnxEncoder(graphs.model, massive.spec).encode(tiny_tiles))
    assert agreement.cosine_worst > (0.9999 if precision is Precision.FP16 else 0.98)
    report = build_engine(graphs.model, tmp_path / "engine", library=RTX, precision=precision)
    assert report.size_bytes > 1000


def test_such_a_graph_in_fp16_throughout_is_caught(
    massive: LoadedModel, tiny_tiles: NDArray[np.uint8], tmp_path: Path
) -> None:
    full = export_onnx(massive.module, massive.spec, tmp_path / "fp32.onnx")
    cast_onnx(full, tmp_path / "half.onnx", Precision.FP16)
    with pytest.raises(InputError, match="overflows on calibration tiles"):
        check_half_graph(tmp_path / "half.onnx", full, tiny_tiles)


def test_large_logits_keep_their_softmax_in_fp32(
    tiny_model: Path, tiny_tiles: NDArray[np.uint8], tmp_path: Path
) -> None:
    import torch

    model = load_model(str(tiny_model))
    with torch.no_grad():
        model.module.backbone.blocks[1].attn.qkv.weight[:128] *= 600
    full = export_onnx(model.module, model.spec, tmp_path / "fp32.onnx")
    job = Job(model=model, graph=full, calibration=[tiny_tiles], precision=Precision.FP16)
    graphs = engine_graphs(job, tmp_path)
    graph = read_onnx(graphs.model)
    assert [graph.stored_type(n.input[0]) for n in graph.nodes if n.op_type == "Softmax"] == [
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
    ]
    assert build_engine(graphs.model, tmp_path / "engine", library=RTX, precision=Precision.FP16).size_bytes > 1000


def test_activations_that_are_not_finite_are_refused(
    tiny_model: Path, tiny_tiles: NDArray[np.uint8], tmp_path: Path
) -> None:
    import torch

    model = load_model(str(tiny_model))
    graph = export_onnx(model.module, model.spec, tmp_path / "fp32.onnx")
    found = half_range(graph, tiny_tiles[:4])
    assert 0 < found.largest < 1000
    assert found.headroom == pytest.approx(65504 / found.largest)
    assert found.float32_values == ()
    with torch.no_grad():
        model.module.backbone.blocks[0].mlp.fc2.bias += float("inf")
    broken = export_onnx(model.module, model.spec, tmp_path / "broken.onnx")
    with pytest.raises(InputError, match="in full precision"):
        engine_graphs(Job(model=model, graph=broken, calibration=[tiny_tiles], precision=Precision.FP16), tmp_path)
