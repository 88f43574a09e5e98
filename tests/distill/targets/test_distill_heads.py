"""Heads that are fitted before the first step."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from atlas_edge.distill.data.teachers import Features
from atlas_edge.distill.targets.heads import FirstLook, TargetTransforms, look_over
from atlas_edge.distill.targets.losses import MlpHead, TeacherHead, feature_loss, nested_loss
from atlas_edge.distill.training.config import HeadName
from atlas_edge.errors import UsageError

WIDTH, VIEWS, PATCHES = 8, 200, 4


def _look(*, sees: bool) -> FirstLook:
    """Two teachers, each a linear map of the student's tokens; the second one has no patch tokens."""
    generator = np.random.default_rng(0)
    own_cls, own_patches = (
        generator.normal(size=shape).astype(np.float32) for shape in ((VIEWS, WIDTH), (VIEWS, PATCHES, WIDTH))
    )
    maps = [generator.normal(size=(WIDTH, width)).astype(np.float32) for width in (16, 12)]
    return FirstLook(
        cls=tuple([own_cls @ matrix + 3.0] for matrix in maps),
        patches=([own_patches @ maps[0] - 1.0], []),
        own_cls=[own_cls] if sees else [],
        own_patches=[own_patches] if sees else [],
    )


def _heads(transforms: TargetTransforms, kind: HeadName = "linear") -> list[TeacherHead]:
    return [TeacherHead(WIDTH, *pair, kind=kind) for pair in transforms]


@pytest.mark.parametrize(("normalise", "kind"), [(True, "linear"), (False, "linear"), (True, "mlp")])
def test_heads_of_all_teachers_predict_their_targets(normalise: bool, kind: HeadName) -> None:
    look = _look(sees=True)
    transforms = look.transforms(normalise=normalise)
    heads = _heads(transforms, kind)
    look.fit(heads, transforms)
    for head, (cls_map, _), cls in zip(heads, transforms, look.cls, strict=True):
        predicted = head.cls(torch.from_numpy(look.own_cls[0])).detach().numpy()
        assert np.abs(predicted - cls_map(cls[0])).max() < 0.01
    patch_map = transforms[0][1]
    assert patch_map is not None and heads[0].patches is not None and heads[1].patches is None
    predicted = heads[0].patches(torch.from_numpy(look.own_patches[0])).detach().numpy()
    assert np.abs(predicted - patch_map(look.patches[0][0])).max() < 0.01


def test_a_hidden_layer_learns_what_no_linear_map_can() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(256, WIDTH)
    target = torch.nn.functional.layer_norm(tokens, (WIDTH,)).abs() @ torch.randn(WIDTH, 32)
    errors = {}
    for make in (torch.nn.Linear, MlpHead):
        head = make(WIDTH, 32)
        optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
        for _ in range(150):
            error = torch.nn.functional.mse_loss(head(tokens), target)
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        errors[make] = float(error.detach())
    assert errors[MlpHead] < 0.1 * errors[torch.nn.Linear]


def test_a_prefix_of_the_embedding_is_seen_without_its_rest() -> None:
    torch.manual_seed(0)
    head, tokens, target = torch.nn.Linear(WIDTH, 12), torch.randn(32, WIDTH), torch.randn(32, 12)
    prefix = torch.nn.functional.linear(tokens[:, :3], head.weight[:, :3], head.bias)
    expected = (feature_loss(prefix, target) + feature_loss(head(tokens), target)) / 2
    torch.testing.assert_close(nested_loss(head, tokens, target, (3,), "cosine"), expected)


def test_a_student_that_does_not_see_keeps_its_random_heads() -> None:
    look = _look(sees=False)
    transforms = look.transforms(normalise=True)
    heads = _heads(transforms)
    before = [head.cls.weight.clone() for head in heads]
    look.fit(heads, transforms)
    assert all(torch.equal(head.cls.weight, weight) for head, weight in zip(heads, before, strict=True))


@pytest.mark.parametrize("side", [8, 14, 16, 32])
def test_patches_are_looked_at_all_over_the_grid_and_at_the_same_places(side: int) -> None:
    places = np.arange(side * side, dtype=np.float32)[:, None]

    class Views:
        """Teachers with and without patch tokens, each patch token the number of its place."""

        targets = (None, None)

        def sample(self, count: int) -> Iterator[tuple[object, tuple[Features, Features]]]:
            cls = torch.zeros(2, 1)
            for _ in range(count // 2):
                patches = torch.from_numpy(np.stack([places, places]))
                yield (
                    np.zeros((2, 1, 1, 3), dtype=np.uint8),
                    (Features(cls=cls, patches=patches), Features(cls=cls, patches=None)),
                )

    def student(pixels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(pixels), 1), -1.0), torch.from_numpy(np.stack([places] * len(pixels)))

    stream: Any = Views()
    look = look_over(stream, 128, patches=True, student=student)
    fitted = np.concatenate(look.patches[0])[:, :4]
    assert np.array_equal(np.concatenate(look.own_patches)[:, :4], fitted)
    assert (np.concatenate(look.own_cls) == -1).all()
    assert len(np.unique(fitted // side)) == len(np.unique(fitted % side)) == side
    assert look.patches[1] == []
    assert look_over(stream, 4, patches=False, student=student).own_patches == []


def test_features_that_are_not_finite_are_refused() -> None:
    look = _look(sees=True)
    transforms = look.transforms(normalise=True)
    look.own_cls[0][3, 2] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        look.fit(_heads(transforms), transforms)
