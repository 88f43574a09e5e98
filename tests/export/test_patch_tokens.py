"""Patch tokens beside the embedding, against timm's `forward_features`, in every form that runs here."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("timm")

import timm
import torch

from atlas_edge import open_bundle
from atlas_edge.bundle import read_manifest
from atlas_edge.encoder import Encoder
from atlas_edge.errors import UsageError
from atlas_edge.export.rebuild import rebuild_bundle
from atlas_edge.models.folding.vit import fold_vit
from atlas_edge.models.graph import export_onnx, largest_difference
from atlas_edge.models.load import LoadedModel, load_encoder, load_model
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.openvino import OpenVinoEncoder
from atlas_edge.spec import TokenGrid
from support import write_timm_folder

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]
SIZE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
# Without CLS token, with a norm after pooling, rotary with registers and CLS beside the mean.
FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cls": ("vit_tiny_patch16_224", SIZE, {}),
    "avg": ("vit_tiny_patch16_224", SIZE | {"class_token": False, "global_pool": "avg"}, {}),
    "rotary": (
        "vit_small_patch16_dinov3",
        SIZE | {"num_reg_tokens": 3, "global_pool": "token", "dynamic_img_size": False},
        {"pooling": "cls+mean"},
    ),
}
FEW = ("--calib-limit", "16", "--fit-limit", "8", "--eval-limit", "16", "--no-speed", "--output", "tokens")


@pytest.fixture(scope="module", params=list(FORMS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, arguments, top = FORMS[request.param]
    return write_timm_folder(tmp_path_factory.mktemp("model") / request.param, architecture, top=top, **arguments)


def tiles_of(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def timm_tokens(folder: Path, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`(B, N, C)` patch tokens of timm's own network."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        features = network.forward_features((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255.0 - mean) / std)
    found: NDArray[np.float32] = features[:, network.num_prefix_tokens :].numpy()
    return found


def cosines(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
    assert expected.shape == found.shape
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    result: NDArray[np.float32] = (expected * found).sum(-1) / norms
    return result


def encoders(model: LoadedModel, folder: Path) -> dict[str, Encoder]:
    from atlas_edge.quantize.openvino.graph import build_openvino
    from atlas_edge.quantize.openvino.grids import VitGrids

    folded = fold_vit(model.module)
    assert folded is not None
    spec = model.spec
    written, traced = (
        export_onnx(model.module, spec, folder / f"{fold}.onnx", fold=fold, batch=None if fold else 2)
        for fold in (True, False)
    )
    assert largest_difference(model.module, written, tiles_of(2)) < 1e-9
    return {
        "ONNX Runtime": OnnxEncoder(written, spec),
        "ONNX Runtime, traced": OnnxEncoder(traced, spec),
        "OpenVINO, of ONNX": OpenVinoEncoder(written, spec, batch=2, streams=2),
        "OpenVINO": OpenVinoEncoder(build_openvino(folded, VitGrids(), tile_px=32), spec),
    }


def test_every_runtime_gives_timm_s_patch_tokens(folder: Path, tmp_path: Path) -> None:
    tiles = tiles_of(5)
    expected = timm_tokens(folder, tiles)
    model = load_model(str(folder)).with_tokens()
    assert model.spec.tokens == TokenGrid(rows=4, columns=4, channels=48)
    eager = load_encoder(str(folder))
    embeddings = eager.encode(tiles)
    for name, encoder in (encoders(model, tmp_path) | {"PyTorch": eager}).items():
        found, tokens = encoder.encode_tokens(tiles)
        np.testing.assert_allclose(tokens, expected, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(found, embeddings, atol=2e-5, err_msg=name)
        np.testing.assert_array_equal(found, encoder.encode(tiles), err_msg=name)
        assert tokens.dtype == np.float32
        encoder.close()


def test_a_graph_without_them_is_what_it_was(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder))
    paths = [export_onnx(model.module, model.spec, tmp_path / "before.onnx")]
    model.with_tokens()
    paths.append(export_onnx(model.module, model.spec, tmp_path / "after.onnx"))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "tokens" not in model.spec.model_dump(mode="json")
    assert b"tokens" not in paths[0].read_bytes()


@pytest.mark.parametrize(("target", "precision"), [("openvino", "int8"), ("onnx", "int8"), ("tensorrt-rtx", "fp16")])
def test_a_bundle_holds_them_and_says_so(
    target: str, precision: str, tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    if target == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "bundle"
    options = ("--target", target, "--precision", precision, "--calib", tiles, "--out", out)
    done = run_command("atlas-export", tiny_model, *options, *FEW)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(out)
    assert manifest.encoder.tokens == TokenGrid(rows=4, columns=4, channels=64)
    assert manifest.verification is not None
    assert manifest.verification["tokens"]["cosine_p1"] > (0.999 if precision == "fp16" else 0.99)
    said = run_command("atlas-export", "verify", out).stdout
    assert "4 x 4 patch tokens of 64 channels" in said
    assert "encode_tokens(tiles)" in (out / "README.md").read_text()
    if target == "tensorrt-rtx":
        rebuild_bundle(out, compute_capabilities=("12.0",))
        assert read_manifest(out).encoder == manifest.encoder
        out = out / "onnx"
    encoder, some = open_bundle(out), tiles_of(3)
    embeddings, tokens = encoder.encode_tokens(some)
    np.testing.assert_array_equal(embeddings, encoder.encode(some))
    encoder.close()
    assert cosines(timm_tokens(tiny_model, some), tokens).min() > (0.999 if precision == "fp16" else 0.98)


def test_a_network_without_patches_is_refused(tmp_path: Path) -> None:
    model = load_model(str(write_timm_folder(tmp_path / "cnn", "resnet18", cfg={"input_size": [3, 64, 64]})))
    with pytest.raises(UsageError, match="no vision transformer and has no patch tokens"):
        model.with_tokens()
    encoder = load_encoder(str(tmp_path / "cnn"))
    with pytest.raises(UsageError, match="holds no patch tokens"):
        encoder.encode_tokens(np.zeros((1, 64, 64, 3), np.uint8))
