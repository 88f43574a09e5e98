"""Which networks can be students, and which can take their first weights from a teacher."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked

from atlas_edge.distill.closed_form.inherit import _choose_heads, inherit
from atlas_edge.distill.closed_form.moments import Moments
from atlas_edge.distill.training.student import build_student, inherit_from, save_student
from atlas_edge.errors import UsageError
from atlas_edge.models.load import load_model

_TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_384",  # made for 384 px
        "vit_small_patch14_dinov2",  # 518 px
        "vit_small_patch16_dinov3",  # 256 px, and pooled by the mean where nothing else is asked for
    ],
)
def test_an_architecture_of_another_size_is_a_student_at_224_px(name: str, tmp_path: Path) -> None:
    small = {"embed_dim": 64, "depth": 1, "num_heads": 1}
    backbone, architecture = build_student(name, arguments=small)
    assert architecture.tile_px == 224
    save_student(tmp_path, backbone.state_dict(), architecture, licence="other", half=False)
    images = torch.randn(1, 3, 224, 224)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        cls = backbone.eval().forward_features(images)[:, 0]
        assert torch.allclose(again(images), cls, atol=1e-5)
    loaded = load_model(str(tmp_path))
    assert (loaded.spec.tile_px, loaded.spec.pooling) == (224, "cls")


@pytest.mark.parametrize("name", ["vit_medium_patch16_reg4_gap_256", "resnet18", "swin_tiny_patch4_window7_224"])
def test_a_network_without_a_cls_token_is_no_student(name: str) -> None:
    with pytest.raises(UsageError, match="no CLS and patch tokens"):
        build_student(name)


def test_an_argument_that_an_architecture_does_not_take_is_told() -> None:
    with pytest.raises(UsageError, match="timm cannot build resnet18 with"):
        build_student("resnet18", arguments={"patch_size": 8})


def test_a_folder_that_embeds_by_the_mean_is_no_student(tmp_path: Path) -> None:
    _save(tmp_path, "vit_tiny_patch16_224", _TINY | {"global_pool": "avg", "class_token": True})
    with pytest.raises(UsageError, match="embeds by avg"):
        build_student(str(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "arguments", "part"),
    [
        ("vit_small_patch16_dinov3", {"global_pool": "token"}, "teacher has rotary positions, the student"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "norms its queries and keys"),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}, "norms or gates"),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "norms inside its MLPs"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "a norm before its blocks"),
        ("vit_tiny_patch16_224", {"final_norm": False}, "does not end in a LayerNorm"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "embeds by avg"),
        ("beit_base_patch16_224", {"global_pool": "token", "use_abs_pos_emb": True}, "is a Beit and no plain ViT"),
        ("resnet18", {}, "is a CNN"),
    ],
)
def test_a_teacher_whose_parts_the_fit_does_not_know_is_refused_by_name(
    architecture: str, arguments: dict[str, Any], part: str, tmp_path: Path
) -> None:
    _save(tmp_path, architecture, {} if architecture == "resnet18" else _TINY | arguments)
    views = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    backbone, own = build_student("vit_tiny_patch16_224", arguments=_TINY | {"embed_dim": 32, "num_heads": 1})
    with pytest.raises(UsageError, match=part):
        inherit_from(str(tmp_path), backbone, own, student_views=views, teacher_views=views)


def test_a_student_whose_parts_the_fit_does_not_know_is_refused_by_name() -> None:
    images = [torch.randn(2, 3, 32, 32)]
    teacher, student = (_vit(**more) for more in ({}, {"qk_norm": True}))
    with pytest.raises(ValueError, match="the student norms its queries and keys"):
        inherit(student, teacher, images, images)
    with pytest.raises(ValueError, match=r"the student has gated MLPs \(GluMlp\)"):
        inherit(_vit(mlp_layer=SwiGLUPacked), teacher, images, images)
    with pytest.raises(ValueError, match="linear layers without bias"):
        inherit(_vit(proj_bias=False), teacher, images, images)
    with pytest.raises(ValueError, match="student is 64 wide with 512 neurons"):
        inherit(_vit(mlp_ratio=8), teacher, images, images)


def test_heads_are_chosen_among_many_in_little_time() -> None:
    """Of 24 heads 12 write what is read; 2.7 million choices cannot all be tried."""
    generator = np.random.default_rng(0)
    size, heads = 2, 24
    needed = sorted(generator.choice(heads, 12, replace=False).tolist())
    inputs = torch.from_numpy(generator.normal(size=(600, heads * size)))
    columns = [head * size + part for head in needed for part in range(size)]
    target = inputs[:, columns] @ torch.from_numpy(generator.normal(size=(len(columns), 8)))
    moments = Moments()
    with_bias = torch.cat([inputs, torch.ones(600, 1, dtype=torch.float64)], dim=1)
    moments.gram, moments.cross = with_bias.T @ with_bias, with_bias.T @ target
    moments.power = float(target.square().sum())
    assert list(_choose_heads(moments, heads, 12)) == needed


def _vit(**more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **(_TINY | more)).eval()


def _save(folder: Path, architecture: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **arguments)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "license": "mit"}
    config = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
