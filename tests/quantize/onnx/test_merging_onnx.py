"""Token merging in graphs with Q/DQ: the same as in a folded network, at every batch size, in engines' graphs, too."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from folding_kinds import KINDS, encoder_of
from numpy.typing import NDArray

from atlas_edge.bundle import read_manifest
from atlas_edge.cli import run_app
from atlas_edge.errors import UsageError
from atlas_edge.export.cli import app as export_app
from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folding.merging import with_merging
from atlas_edge.models.folding.vit import fold_vit
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.merged_vit import merged_vit
from atlas_edge.quantize.onnx.attention_qdq import quantize_attention
from atlas_edge.quantize.onnx.engine_graph import engine_graph
from atlas_edge.quantize.onnx.qdq import quantize_onnx
from atlas_edge.quantize.paths import path_sentence
from atlas_edge.quantize.recipe import for_merging, onnx_recipe
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.spec import EncoderSpec, Precision

Batches = list[NDArray[np.uint8]]

FACTOR = 1.05
# PyTorch's older exporter has no RMSNorm.
WRITABLE = [kind for kind in KINDS if kind != "turned, normed by mean square"]


def _expected(module: EncoderModule, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the folded network merges to; another function than the encoder's."""
    folded = fold_vit(module)
    assert folded is not None
    with torch.inference_mode():
        merged = with_merging(folded, FACTOR)(torch.from_numpy(tiles)).numpy()
        whole = module(torch.from_numpy(tiles)).numpy()
    assert np.linalg.norm(merged - whole) > 1e-3 * np.linalg.norm(merged)
    found: NDArray[np.float32] = merged
    return found


def _cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    cosines: NDArray[np.float32] = (
        (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    )
    return cosines


def _quantized(kind: str, calibration: Batches, folder: Path) -> tuple[Path, EncoderModule, EncoderSpec, dict]:
    module, spec = encoder_of(kind)
    path = folder / "model.onnx"
    return path, module, spec, quantize_onnx(module, spec, calibration, path, recipe=for_merging(onnx_recipe(), FACTOR))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_not_folded_merge_alike(kind: str, held_out: NDArray[np.uint8]) -> None:
    module, _ = encoder_of(kind)
    merged, expected = merged_vit(module, module, FACTOR), _expected(module, held_out)
    assert merged is not None
    with torch.inference_mode():
        found = merged(torch.from_numpy(held_out)).numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", WRITABLE)
def test_a_written_graph_merges_alike_in_every_batch(kind: str, held_out: NDArray[np.uint8], tmp_path: Path) -> None:
    module, spec = encoder_of(kind)
    merged, expected = merged_vit(module, module, FACTOR), _expected(module, held_out)
    assert merged is not None
    encoder = OnnxEncoder(export_onnx(merged, spec, tmp_path / "m.onnx", dynamo=False), spec)
    assert np.linalg.norm(encoder.encode(held_out) - expected) < 1e-5 * np.linalg.norm(expected)
    alone = np.concatenate([encoder.encode(tile[None]) for tile in held_out[:3]])
    assert np.linalg.norm(alone - expected[:3]) < 1e-5 * np.linalg.norm(expected[:3])


@pytest.mark.parametrize("kind", ["pre-norm", "gated", "turned", "turned, gated, normed within"])
def test_a_merging_encoder_is_quantized_whole(
    kind: str, calibration: Batches, held_out: NDArray[np.uint8], tmp_path: Path
) -> None:
    path, module, spec, report = _quantized(kind, calibration, tmp_path)
    assert report["merged"] and report["path_reason"] is None
    assert "1.05 times less work" in str(path_sentence(report))
    # Every product with weights, and none of merging.
    linears = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    assert report["coverage"]["MatMul"].startswith(f"{len(linears)} of ")
    assert _cosines(OnnxEncoder(path, spec).encode(held_out), _expected(module, held_out)).min() > 0.99


def test_quantized_attention_leaves_merging_alone(
    calibration: Batches, held_out: NDArray[np.uint8], tmp_path: Path
) -> None:
    path, module, spec, _ = _quantized("pre-norm", calibration, tmp_path)
    assert quantize_attention(path, tmp_path / "attention.onnx", held_out) == 2 * len(module.backbone.blocks)
    found = OnnxEncoder(tmp_path / "attention.onnx", spec).encode(held_out)
    assert _cosines(found, _expected(module, held_out)).min() > 0.99


def test_the_graph_of_an_engine_merges_in_half_precision(
    calibration: Batches, held_out: NDArray[np.uint8], tmp_path: Path
) -> None:
    path, module, spec, _ = _quantized("turned by head", calibration, tmp_path)
    engine_graph(path, tmp_path / "engine.onnx", precision=Precision.INT8, tiles=held_out)
    onnx.checker.check_model(str(tmp_path / "engine.onnx"), full_check=True)
    found = OnnxEncoder(tmp_path / "engine.onnx", spec).encode(held_out)
    assert _cosines(found, _expected(module, held_out)).min() > 0.99


def test_what_cannot_merge_says_why(calibration: Batches, tmp_path: Path) -> None:
    module, spec = encoder_of("pre-norm")
    for recipe, gives_tokens, reason in (
        (for_merging(onnx_recipe(), 7.0), False, r"at most 1\.[0-9]+ times"),
        (for_merging(onnx_recipe(), FACTOR), True, "patch tokens"),
    ):
        module.gives_tokens = gives_tokens
        with pytest.raises(UsageError, match=reason):
            quantize_onnx(module, spec, calibration, tmp_path / "m.onnx", recipe=recipe)
    module.backbone.blocks[0].attn.qkv = torch.nn.Sequential(module.backbone.blocks[0].attn.qkv)
    module.backbone.blocks[0].mlp = torch.nn.Sequential(module.backbone.blocks[0].mlp)
    with pytest.raises(UsageError, match=r"this network cannot: blocks.0.mlp is a Sequential"):
        quantize_onnx(module, spec, calibration, tmp_path / "m.onnx", recipe=for_merging(onnx_recipe(), FACTOR))
    assert not list(tmp_path.iterdir())


def test_an_engine_is_built_that_merges(
    tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    words = [str(tiny_model), "--target", "tensorrt-rtx", "--precision", "int8", "--calib", str(tiles), "--no-speed"]
    words += ["--compute-capability", "8.9", "--merge-tokens", str(FACTOR), "--out", "bundle"]
    assert run_app(export_app, words) == 0, capsys.readouterr().err
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.quantization is not None and manifest.quantization["merged"]
    assert (tmp_path / "bundle" / "model.engine").stat().st_size > 10_000
