import numpy as np
import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch.nn import functional as F

from atlas_edge.distill import rounding as rounding_module
from atlas_edge.distill.closed_form.inherit import inherit
from atlas_edge.distill.closed_form.whitening import even_out
from atlas_edge.distill.rounding import rounding


def _vit(
    width: int, heads: int, *, patch: int = 8, img: int = 32, seed: int = 0, depth: int = 2, **more: object
) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=img,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        **more,
    )
    with torch.no_grad():  # timm's initial weights are so small that every block is near nothing
        for block in model.blocks:
            linears = [part for part in block.modules() if isinstance(part, torch.nn.Linear)]
            for linear in linears:
                linear.weight.mul_(5.0)
    return model.eval()


def _cosine(student: torch.nn.Module, teacher: torch.nn.Module, images: torch.Tensor, found: object) -> float:
    with torch.inference_mode():
        mapped = student.forward_features(images) @ found.head_weight.T + found.head_bias  # type: ignore[attr-defined]
        target = teacher.forward_features(images)
    return float(F.cosine_similarity(mapped, target, dim=-1).mean())


def test_a_student_almost_as_wide_reproduces_its_teacher_on_new_tiles() -> None:
    torch.manual_seed(2)
    images = torch.randn(64, 3, 32, 32)
    teacher = _vit(64, 2, reg_tokens=1)
    twin = _vit(64, 2, seed=1, reg_tokens=1)
    found = inherit(twin, teacher, images[:48].split(16), images[:48].split(16))
    assert found.stream_kept > 0.99
    assert _cosine(twin, teacher, images[48:], found) > 0.98


def test_half_the_width_is_far_better_than_random_weights() -> None:
    torch.manual_seed(2)
    images = torch.randn(96, 3, 32, 32)
    teacher, student, fresh = _vit(64, 2), _vit(32, 1, seed=1), _vit(32, 1, seed=1)
    found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
    fitted = _cosine(student, teacher, images[64:], found)
    assert fitted > _cosine(fresh, teacher, images[64:], found) + 0.2


def test_a_deeper_teacher_gives_the_blocks_that_matter() -> None:
    torch.manual_seed(2)
    images = torch.randn(96, 3, 32, 32)
    teacher = _vit(64, 2, depth=5)
    with torch.no_grad():  # blocks 1 and 3 add next to nothing
        for number in (1, 3):
            for writer in (teacher.blocks[number].attn.proj, teacher.blocks[number].mlp.fc2):
                writer.weight.mul_(0.02)
    whole, cut, fresh = (_vit(64, 2, seed=1, depth=depth) for depth in (3, 2, 2))
    cosines = []
    for student in (whole, cut):
        found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
        cosines.append(_cosine(student, teacher, images[64:], found))
    # Without the two that matter least it is nearly the teacher; what a block less costs is made up for in part.
    assert cosines[0] > 0.97
    assert cosines[0] > cosines[1] > _cosine(fresh, teacher, images[64:], found) + 0.2


@pytest.mark.parametrize("mlp", [SwiGLUPacked, GluMlp, SwiGLU])
def test_a_teacher_with_gated_mlps_is_followed(mlp: object) -> None:
    torch.manual_seed(2)
    images = torch.randn(96, 3, 32, 32)
    teacher, student, fresh = _vit(64, 2, mlp_layer=mlp), _vit(64, 2, seed=1), _vit(64, 2, seed=1)
    found = inherit(student, teacher, images[:64].split(16), images[:64].split(16))
    fitted = _cosine(student, teacher, images[64:], found)
    assert fitted > 0.9 and fitted > _cosine(fresh, teacher, images[64:], found) + 0.2


def test_a_fit_to_rounded_layers_makes_up_for_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 bits instead of 8, so that it shows in networks this small.
    monkeypatch.setattr(rounding_module, "_LEVELS", 7)
    torch.manual_seed(2)
    images = torch.randn(96, 3, 32, 32)
    teacher, plain, rounded = _vit(64, 2), _vit(32, 1, seed=1), _vit(32, 1, seed=1)
    cosines = {}
    for name, student in (("plain", plain), ("rounded", rounded)):
        found = inherit(student, teacher, images[:64].split(16), images[:64].split(16), rounded=name == "rounded")
        with torch.inference_mode():
            with rounding(wanted=True):
                tokens = student.forward_features(images[64:])
            mapped, target = tokens @ found.head_weight.T + found.head_bias, teacher.forward_features(images[64:])
        cosines[name] = float(F.cosine_similarity(mapped, target, dim=-1).mean())
    assert cosines["rounded"] > cosines["plain"] + 0.02


def test_layer_scale_does_not_shrink_what_was_fitted() -> None:
    torch.manual_seed(2)
    images = torch.randn(48, 3, 32, 32)
    teacher, student = _vit(64, 2), _vit(64, 2, seed=1, init_values=1e-5)
    found = inherit(student, teacher, images.split(16), images.split(16))
    assert _cosine(student, teacher, images, found) > 0.98


def test_the_output_is_turned_to_its_principal_directions_centred_and_evened_out() -> None:
    torch.manual_seed(2)
    # Brightness differs most between these images: it dominates what the networks say of them.
    images = torch.randn(96, 3, 32, 32) + 2 * torch.randn(96, 1, 1, 1)
    teacher, students = _vit(64, 2), {power: _vit(32, 1, seed=1) for power in (0.0, 0.5, 1.0)}
    outputs, mapped = {}, {}
    for power, student in students.items():
        found = inherit(student, teacher, images.split(16), images.split(16), whitening=power)
        with torch.inference_mode():
            outputs[power] = student.forward_features(images)[:, 0]
        mapped[power] = outputs[power] @ found.head_weight.T + found.head_bias
    raw = {power: (outputs[power] - student.norm.bias) / student.norm.weight for power, student in students.items()}
    for power, output in outputs.items():
        # The network computes the same whatever the scale, and its head takes the scale away again.
        torch.testing.assert_close(raw[power], raw[0.0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mapped[power], mapped[0.0], rtol=1e-3, atol=1e-2)
        assert output.mean(0).abs().max() < 1e-3
        assert float(output.square().mean()) == pytest.approx(1.0, abs=1e-3)
        assert output.T.corrcoef().tril(-1).abs().sum() / (32 * 31 / 2) < 0.05
    # In descending order; the first direction lives in two channels.
    spread = outputs[0.0].std(0)[1:]
    assert (spread[:-1] > 0.95 * spread[1:]).all()
    ratios = {power: float(output.std(0).max() / output.std(0).min()) for power, output in outputs.items()}
    assert ratios[0.5] < ratios[0.0] ** 0.6
    assert ratios[1.0] < ratios[0.5] ** 0.6


@pytest.mark.parametrize("more", [{}, {"reg_tokens": 2, "init_values": 0.3}])
def test_a_turned_network_computes_the_same_turned(more: dict[str, float]) -> None:
    torch.manual_seed(2)
    images = torch.randn(48, 3, 32, 32)
    student = _vit(32, 1, **more)
    with torch.no_grad():
        for token in (student.cls_token, student.pos_embed, student.reg_token):
            if token is not None:
                torch.nn.init.normal_(token)
        before = student.forward_features(images)
        turn = even_out(student, before[:, 0], 0.5)
        after = student.forward_features(images)
    scale, shift = student.norm.weight, student.norm.bias
    torch.testing.assert_close(turn @ turn.T, torch.eye(32), rtol=0, atol=1e-5)
    torch.testing.assert_close(turn.sum(1), torch.ones(32), rtol=0, atol=1e-5)
    torch.testing.assert_close((after - shift) / scale, before @ turn.T, rtol=0, atol=1e-3)
    # Principal directions, by NumPy, of what the network said before.
    vectors = np.linalg.eigh(np.cov(before[:, 0].double().numpy().T))[1]
    assert abs(vectors[:, -1] @ turn[:2].double().numpy().T @ [-1, 1]) / 2**0.5 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("views", [1, 4])
def test_views_that_are_all_the_same_leave_the_scale_alone(views: int) -> None:
    torch.manual_seed(2)
    images = torch.randn(1, 3, 32, 32).expand(views, -1, -1, -1)
    student = _vit(32, 1, seed=1)
    inherit(student, _vit(64, 2), [images], [images])
    assert (student.norm.weight == 1).all()
    with torch.inference_mode():
        assert torch.isfinite(student.half().float().forward_features(torch.randn(2, 3, 32, 32))).all()


@pytest.mark.parametrize(("width", "heads", "more"), [(64, 4, {}), (32, 1, {"reg_tokens": 2}), (32, 1, {"depth": 3})])
def test_networks_that_do_not_fit_are_refused(width: int, heads: int, more: dict[str, int]) -> None:
    torch.manual_seed(0)
    student = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        **{"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": heads, **more},
    )
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="student has"):
        inherit(student, _vit(64, 2), images.split(16), images.split(16))
