"""Heads that are fitted before the first step."""

import numpy as np
import pytest
import torch

from atlas_edge.distill.first_look import FirstLook, TargetTransforms
from atlas_edge.distill.losses import TeacherHead

WIDTH, VIEWS, PATCHES = 8, 200, 4


def _look(*, sees: bool) -> FirstLook:
    """Two teachers, each a linear map of the student's tokens; the second one has no patch tokens."""
    generator = np.random.default_rng(0)
    own_cls, own_patches = (
        generator.normal(size=(rows, WIDTH)).astype(np.float32) for rows in (VIEWS, VIEWS * PATCHES)
    )
    maps = [generator.normal(size=(WIDTH, width)).astype(np.float32) for width in (16, 12)]
    return FirstLook(
        cls=tuple([own_cls @ matrix + 3.0] for matrix in maps),
        patches=([own_patches @ maps[0] - 1.0], []),
        own_cls=[own_cls] if sees else [],
        own_patches=[own_patches] if sees else [],
    )


def _heads(transforms: TargetTransforms) -> list[TeacherHead]:
    return [TeacherHead(WIDTH, *pair) for pair in transforms]


@pytest.mark.parametrize("normalise", [True, False])
def test_heads_of_all_teachers_predict_their_targets(normalise: bool) -> None:
    look = _look(sees=True)
    transforms = look.transforms(normalise=normalise)
    heads = _heads(transforms)
    look.fit(heads, transforms)
    for head, (cls_map, _), cls in zip(heads, transforms, look.cls, strict=True):
        predicted = head.cls(torch.from_numpy(look.own_cls[0])).detach().numpy()
        assert np.abs(predicted - cls_map(cls[0])).max() < 0.01
    patch_map = transforms[0][1]
    assert patch_map is not None and heads[0].patches is not None and heads[1].patches is None
    predicted = heads[0].patches(torch.from_numpy(look.own_patches[0])).detach().numpy()
    assert np.abs(predicted - patch_map(look.patches[0][0])).max() < 0.01


def test_a_student_that_does_not_see_keeps_its_random_heads() -> None:
    look = _look(sees=False)
    transforms = look.transforms(normalise=True)
    heads = _heads(transforms)
    before = [head.cls.weight.clone() for head in heads]
    look.fit(heads, transforms)
    assert all(torch.equal(head.cls.weight, weight) for head, weight in zip(heads, before, strict=True))
