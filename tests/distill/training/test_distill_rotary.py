"""A student with rotary positions, patches of 8 px and registers: it learns, goes on bit for bit, and is exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm import create_model
from tiny_runs import losses_of, tiny_config

from atlas_edge import open_bundle
from atlas_edge.cli import run_app
from atlas_edge.distill.training import loop
from atlas_edge.distill.training.run import distill
from atlas_edge.distill.training.student import Architecture, build_student, pooled, save_student
from atlas_edge.errors import UsageError
from atlas_edge.export.cli import app
from atlas_edge.models.load import load_encoder, load_model

_ARCHITECTURE = "vit_small_patch16_dinov3"
_SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_reg_tokens": 8}


class _Stopped(Exception):
    pass


@pytest.fixture
def rotary(tmp_path: Path) -> Path:
    """A small network in the shape of `atlas2-s --patch 8`: CLS token beside the mean patch token."""
    torch.manual_seed(3)
    shape: dict[str, Any] = {**_SHAPE, "global_pool": "token", "num_classes": 0}
    model = create_model(_ARCHITECTURE, **shape)
    folder = tmp_path / "rotary"
    folder.mkdir()
    architecture = Architecture(name=_ARCHITECTURE, arguments=shape, tile_px=32, pooling="cls+mean")
    save_student(folder, model.state_dict(), architecture, licence="cc0-1.0", half=False)
    return folder


def test_it_learns_goes_on_bit_for_bit_and_is_exported(
    rotary: Path, tiny_model: Path, tile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)
    whole, killed = (
        tiny_config(tiny_model, tile_folder, rotary, tmp_path / name, steps=40, lr=1e-3, fit_heads=False)
        for name in ("whole", "killed")
    )

    def stop(state: Any) -> None:
        if state.step == 8:
            raise _Stopped

    distill(whole)
    with pytest.raises(_Stopped):
        distill(killed, progress=stop)
    assert distill(killed).resumed_from == 5
    losses = losses_of(whole.out)
    assert losses_of(killed.out) == losses
    values = list(losses.values())
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10])
    spec = load_model(str(whole.out)).spec
    assert (spec.pooling, spec.embed_dim, spec.registers) == ("cls+mean", 64, 8)
    assert 'load_encoder("whole")' in (whole.out / "README.md").read_text(encoding="utf-8")
    tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with_torch = load_encoder(str(whole.out)).encode(tiles)
    for target in ("onnx", "openvino"):
        out = tmp_path / target
        words = [str(whole.out), "--target", target, "--precision", "fp32", "--calib", str(tile_folder)]
        assert run_app(app, [*words, "--no-speed", "--out", str(out)]) == 0
        encoder = open_bundle(out)
        np.testing.assert_allclose(encoder.encode(tiles), with_torch, atol=1e-3)
        encoder.close()


@pytest.mark.parametrize(("patch", "pooling", "registers"), [(8, "cls+mean", 8), (14, "cls", 4), (16, "cls", 4)])
def test_atlas2_s_of_every_patch_side_is_a_student(patch: int, pooling: str, registers: int, tmp_path: Path) -> None:
    backbone, architecture = build_student("atlas2-s", patch=patch)
    assert architecture.pooling == pooling
    save_student(tmp_path, backbone.state_dict(), architecture, licence="cc0-1.0", half=True)
    loaded = load_model(str(tmp_path))
    published = load_model("atlas2-s", patch=patch).spec
    for fact in ("architecture", "patch", "registers", "pooling", "embed_dim", "tile_px", "mean", "std", "mpp"):
        assert getattr(loaded.spec, fact) == getattr(published, fact), fact
    assert loaded.spec.registers == registers
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.eval().forward_features(images)
        expected = pooled(tokens, int(backbone.num_prefix_tokens), architecture.pooling)
        torch.testing.assert_close(loaded.module.embed(images), expected, atol=5e-2, rtol=0)


def test_a_student_that_has_its_own_patches_is_told_to_keep_them() -> None:
    with pytest.raises(UsageError, match="--patch and --registers are of atlas2-s"):
        build_student("vit_tiny_patch16_224", patch=8)
