"""Training an encoder that merges tokens: taught by the one that merges nothing, and exported as it was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from folding_kinds import encoder_of
from numpy.typing import NDArray

from atlas_edge.bundle import open_bundle, read_manifest
from atlas_edge.cli import run_app
from atlas_edge.errors import UsageError
from atlas_edge.export.cli import app as export_app
from atlas_edge.models.merged_vit import merged_vit, summaries_of
from atlas_edge.quantize.cli import app
from atlas_edge.quantize.finetune.qad import QadOptions, distill_quantized
from atlas_edge.quantize.recipe import Recipe, for_merging, save_recipe
from atlas_edge.runtimes.onnxruntime import OnnxEncoder

FACTOR = 1.05
RECIPE = for_merging(Recipe(name="mine", smooth_alphas=(-1.0,), patch_embed=False), FACTOR)
OPTIONS = QadOptions(steps=60, batch=8, held_out=16, warmup=3, save_every=20, weight_lr=5e-4, other_lr=5e-4)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(3).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize("kind", ["pre-norm", "averaged"])
def test_training_takes_back_some_of_what_merging_loses(kind: str, pixels: NDArray[np.uint8]) -> None:
    module, _ = encoder_of(kind)
    found = distill_quantized(module, pixels, recipe=RECIPE, options=OPTIONS)
    assert found.error_after < 0.95 * found.error_before


def test_summaries_are_of_all_patches(pixels: NDArray[np.uint8]) -> None:
    module, _ = encoder_of("pre-norm")
    # With nothing merged both are the same.
    merged = merged_vit(module, module, 1)
    assert merged is not None and not merged.schedule
    tiles = torch.from_numpy(pixels[:4])
    with torch.inference_mode():
        expected = summaries_of(module.tokens(module.normalise(tiles)), module.prefix_tokens)
        torch.testing.assert_close(merged.summaries(tiles), expected, atol=1e-4, rtol=1e-4)


def test_more_than_there_is_cannot_be_merged(pixels: NDArray[np.uint8]) -> None:
    module, _ = encoder_of("pre-norm")
    with pytest.raises(UsageError, match="at most"):
        distill_quantized(module, pixels, recipe=for_merging(RECIPE, 7), options=OPTIONS)


def test_what_was_trained_to_merge_is_exported_merging(
    tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_recipe(RECIPE, tmp_path / "recipe.json")
    words = ["finetune", str(tiny_model), str(tiles), "trained", "--recipe", "recipe.json", "--steps", "2"]
    assert run_app(app, words) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "trained" / "qad.json").read_text())
    assert report["merged"] and report["recipe"]["merge_tokens"] == FACTOR
    words = [
        "trained",
        "--target",
        "onnx",
        "--precision",
        "int8",
        "--calib",
        str(tiles),
        "--no-speed",
        "--out",
        "bundle",
    ]
    assert run_app(export_app, words) == 0, capsys.readouterr().err
    quantization = read_manifest(tmp_path / "bundle").quantization
    assert quantization is not None and quantization["merged"] == report["merged"]
    # The graph that training wrote is the one in the bundle.
    bundle, some = open_bundle(tmp_path / "bundle"), np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    graph = OnnxEncoder(tmp_path / "trained" / "quantized.onnx", bundle.spec)
    np.testing.assert_allclose(bundle.encode(some), graph.encode(some), atol=1e-5)
