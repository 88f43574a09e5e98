"""What a teacher says of a tile: timm's own embedding, and patch tokens beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from atlas_edge.distill.data.augment import Augmentation
from atlas_edge.distill.data.cache import FeatureCache, write_cache
from atlas_edge.distill.data.teachers import Teacher, open_teacher
from atlas_edge.distill.data.tileset import open_training_tiles
from atlas_edge.errors import UsageError

_TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
_SWIN: dict[str, Any] = {
    "img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)
}  # fmt: skip
_NETWORKS = {
    "CLS": ("vit_tiny_patch16_224", _TINY | {"reg_tokens": 1}),
    "average, then norm": ("vit_tiny_patch16_224", _TINY | {"global_pool": "avg"}),
    "average with prefix": ("vit_tiny_patch16_224", _TINY | {"global_pool": "avg", "pool_include_prefix": True}),
    "CLS, then norm": ("vit_tiny_patch16_224", _TINY | {"fc_norm": True}),
    "rotary, average": ("vit_small_patch16_dinov3", _TINY),
    "windows, channels last": ("swin_tiny_patch4_window7_224", _SWIN),
    "CNN": ("resnet18", {}),
}


@pytest.fixture
def tiles() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def _saved(folder: Path, architecture: str, arguments: dict[str, Any]) -> tuple[Teacher, torch.nn.Module]:
    """A teacher whose norms have a say, and the same network in timm."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    side = arguments.get("img_size", 32)
    cfg = {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3, "license": "mit"}
    config = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return open_teacher(str(folder)), model


def _images(tiles: np.ndarray, teacher: Teacher) -> torch.Tensor:  # type: ignore[type-arg]
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 127.5 - 1
    if images.shape[-1] == teacher.spec.tile_px:
        return images
    return F.interpolate(images, size=teacher.spec.tile_px, mode="bicubic", antialias=True, align_corners=False)


@pytest.mark.parametrize("kind", _NETWORKS)
def test_the_embedding_is_what_timm_s_own_network_returns(
    kind: str,
    tiles: np.ndarray,  # type: ignore[type-arg]
    tmp_path: Path,
) -> None:
    teacher, model = _saved(tmp_path, *_NETWORKS[kind])
    with torch.inference_mode():
        expected = model(_images(tiles, teacher))
    alone, beside = (teacher.features(tiles, grid=grid) for grid in (None, 2))
    assert float((1 - F.cosine_similarity(alone.cls, expected)).max()) < 1e-6
    assert torch.equal(beside.cls, alone.cls)
    assert alone.patches is None
    assert beside.patches is not None and beside.patches.shape[:2] == (3, 4)


@pytest.mark.parametrize("kind", ["CLS", "rotary, average", "windows, channels last", "CNN"])
def test_patch_tokens_lie_where_their_patches_do(
    kind: str,
    tiles: np.ndarray,  # type: ignore[type-arg]
    tmp_path: Path,
) -> None:
    teacher, model = _saved(tmp_path, *_NETWORKS[kind])
    with torch.inference_mode():
        tokens = model.forward_features(_images(tiles, teacher))
    if kind == "CNN":
        tokens = tokens.permute(0, 2, 3, 1)
    tokens = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens[:, model.num_prefix_tokens :]
    side = round(tokens.shape[1] ** 0.5)
    found = teacher.features(tiles, grid=side).patches
    assert found is not None
    assert torch.allclose(found, tokens, atol=1e-5)


def test_a_network_without_a_square_of_patches_is_told(
    tiles: np.ndarray,  # type: ignore[type-arg]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, _ = _saved(tmp_path, *_NETWORKS["CLS"])
    monkeypatch.setattr(teacher.module, "tokens", lambda images: torch.zeros(len(images), 2 + 15, 64))
    with pytest.raises(UsageError, match=r"no square grid of patch tokens[\s\S]*--patch-weight 0"):
        teacher.features(tiles, grid=4)


def test_a_cache_keeps_an_embedding_that_is_wider_than_its_patch_tokens(
    tile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _ = _saved(tmp_path, *_NETWORKS["CLS"])
    monkeypatch.setattr(teacher.module, "pool", lambda tokens: torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1))
    training, weak = open_training_tiles([str(tile_folder)]), Augmentation.named("weak")
    write_cache(tmp_path / "cache", teacher, training, seeds=(0,), augmentation=weak, tile_px=32, grid=4)
    found = FeatureCache(tmp_path / "cache", training).features(np.array([3, 0]))
    assert found.patches is not None
    assert (found.cls.shape, found.patches.shape) == ((2, 128), (2, 16, 64))
