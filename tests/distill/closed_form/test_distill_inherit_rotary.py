"""A student with rotary positions inherits from a teacher that has them, whatever biases either leaves out."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from atlas_edge.distill.closed_form.blocks import angles
from atlas_edge.distill.closed_form.inherit import Inherited, inherit
from atlas_edge.distill.closed_form.whitening import even_out
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.student import Architecture, build_student, inherit_from, save_student
from atlas_edge.errors import UsageError


def _rotary(width: int, heads: int, *, seed: int = 0, depth: int = 2, **more: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {"img_size": 32, "patch_size": 8, "global_pool": "token", "num_reg_tokens": 2, "init_values": 1.0, **more}
    model = timm.create_model(
        "vit_small_patch16_dinov3", num_classes=0, embed_dim=width, depth=depth, num_heads=heads, **shape
    )
    with torch.no_grad():  # timm's initial weights are so small that every block is near nothing
        for name, parameter in model.named_parameters():
            if name.startswith("blocks") and parameter.ndim == 2:
                parameter.mul_(5.0)
            elif name.endswith(("q_bias", "v_bias", "norm1.bias")):
                parameter.normal_(std=0.5)
    return model.eval()


def _images() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(96, 3, 32, 32)


def _cosine(student: torch.nn.Module, teacher: torch.nn.Module, images: torch.Tensor, found: Inherited) -> float:
    with torch.inference_mode():
        mapped = student.forward_features(images) @ found.head_weight.T + found.head_bias
        target = teacher.forward_features(images)
    return float(F.cosine_similarity(mapped, target, dim=-1).mean())


@pytest.mark.parametrize("student_biases", [False, True])
@pytest.mark.parametrize("teacher_biases", [False, True])
def test_a_student_almost_as_wide_reproduces_its_rotary_teacher_on_new_tiles(
    teacher_biases: bool, student_biases: bool
) -> None:
    images = _images()
    teacher = _rotary(64, 2, qkv_bias=teacher_biases)
    twin = _rotary(64, 2, seed=1, qkv_bias=student_biases)
    found = inherit(twin, teacher, images[:64].split(16), images[:64].split(16))
    assert _cosine(twin, teacher, images[64:], found) > 0.97


def test_places_are_followed_and_not_only_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images()
    teacher, student = _rotary(64, 2), _rotary(64, 2, seed=1)
    found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
    fitted = _cosine(student, teacher, images[64:], found)
    # Of its two halves, sines become 0 and cosines 1: nothing is turned.
    still = angles(student).clone()
    still[:, : still.shape[1] // 2], still[:, still.shape[1] // 2 :] = 0, 1
    monkeypatch.setattr(student.rope, "get_embed", lambda shape=None: still)
    assert 1 - _cosine(student, teacher, images[64:], found) > 2 * (1 - fitted)


def test_a_narrower_shallower_rotary_student_is_far_better_than_random_weights() -> None:
    images = _images()
    teacher, student, fresh = _rotary(64, 2, depth=4), _rotary(32, 1, seed=1, depth=2), _rotary(32, 1, seed=1, depth=2)
    found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
    fitted = _cosine(student, teacher, images[64:], found)
    assert fitted > _cosine(fresh, teacher, images[64:], found) + 0.2


def test_a_gated_rotary_teacher_is_followed() -> None:
    images = _images()
    teacher, student = _rotary(64, 2, swiglu_mlp=True, mlp_ratio=2.0), _rotary(64, 2, seed=1)
    found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
    assert _cosine(student, teacher, images[64:], found) > 0.9


def test_a_turned_network_with_shifts_in_its_norms_computes_the_same_turned() -> None:
    images = _images()[:48]
    student = _rotary(32, 1)
    for block in student.blocks:
        torch.nn.init.normal_(block.norm1.bias)
    with torch.no_grad():
        before = student.forward_features(images)
        turn = even_out(student, before[:, 0], 0.5)
        after = student.forward_features(images)
    norm = student.norm
    torch.testing.assert_close((after - norm.bias) / norm.weight, before @ turn.T, rtol=0, atol=1e-3)


def test_a_plain_student_whose_attention_has_no_biases_inherits() -> None:
    images, plain = _images(), []
    for seed, biases in ((0, True), (1, False)):
        torch.manual_seed(seed)
        model = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2,
            qkv_bias=biases,
        )  # fmt: skip
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.weight.mul_(5.0)
                block.attn.proj.weight.mul_(5.0)
                if biases:
                    block.attn.qkv.bias.normal_(std=0.5)
        plain.append(model.eval())
    teacher, student = plain
    found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
    assert _cosine(student, teacher, images[64:], found) > 0.97


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rope_temperature": 50.0}, "other angles"),
        ({"rope_rotate_half": False}, "other angles"),
        ({"num_reg_tokens": 3}, "student has 4 prefix tokens"),
        ({"use_abs_pos_emb": True}, "student has 19 position embeddings, teacher 0"),
        ({"use_rot_pos_emb": False, "use_abs_pos_emb": True}, "teacher has rotary positions, the student has none"),
        ({"swiglu_mlp": True}, "student has gated MLPs"),
        ({"qk_norm": True}, "student norms its queries and keys"),
        ({"rope_type": "mixed", "rope_rotate_half": False}, "angles of their own"),
    ],
)
def test_rotary_students_that_do_not_fit_are_refused(more: dict[str, object], message: str) -> None:
    images = _images()[:2]
    with pytest.raises(ValueError, match=message):
        inherit(_rotary(64, 2, **more), _rotary(64, 2), [images], [images])


def test_a_folder_of_a_rotary_teacher_gives_first_weights_and_a_plain_student_is_told_why_not(tmp_path: Path) -> None:
    shape = {
        "img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_reg_tokens": 2,
        "global_pool": "token", "num_classes": 0,
    }  # fmt: skip
    folder = tmp_path / "teacher"
    folder.mkdir()
    teacher = _rotary(64, 2, depth=3)
    architecture = Architecture(name="vit_small_patch16_dinov3", arguments=shape, tile_px=32)
    save_student(folder, teacher.state_dict(), architecture, licence="cc0-1.0", half=False)
    config = TrainConfig(teachers=(str(folder),), tiles=("unused",), out=tmp_path / "out")
    views = (torch.rand(64, 32, 32, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    own = {**shape, "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 1}
    backbone, found = build_student("vit_small_patch16_dinov3", arguments=own, seed=config.seed)
    fitted = inherit_from(str(folder), backbone, found, student_views=_twice(views), teacher_views=_twice(views))
    assert fitted.cls_cosine > 0.8
    plain, found = build_student(
        "vit_tiny_patch16_224",
        arguments={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 1, "reg_tokens": 2},
    )
    with pytest.raises(UsageError, match="teacher has rotary positions"):
        inherit_from(str(folder), plain, found, student_views=views, teacher_views=views)


def _twice(views: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return views.repeat(2, axis=1).repeat(2, axis=2)
