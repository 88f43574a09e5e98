"""What a run learns from some views before its first step: statistics of the targets, and heads for weights that see.

A random head sends random gradients into weights that are good already; a head that is fitted to them first does not
(Kumar et al., ICLR 2022, arXiv:2202.10054).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_edge.distill.losses import TeacherHead
from atlas_edge.distill.phis import FeatureStatistics, TargetTransform, identity, phi_s
from atlas_edge.distill.stream import ViewStream

Chunks = list[NDArray[np.float32]]
TargetTransforms = list[tuple[TargetTransform, TargetTransform | None]]

# Patch tokens looked at of each view: neighbours are alike.
_SAMPLED_PATCHES = 16
# Heads are fitted to one of so many of those.
_FITTED_PATCHES = 4
# Ridge penalties to choose from by leaving one view out, for tokens of a root mean square of about 1.
_PENALTIES = 10.0 ** np.arange(-2, 6)


@dataclass(slots=True)
class FirstLook:
    """Tokens of the views that were looked at, in chunks of `(n, width)` float32.

    Attributes:
        cls: CLS tokens, one list a teacher.
        patches: Some patch tokens, one list a teacher; empty where they are not asked for.
        own_cls: The student's CLS tokens; empty where its weights are random.
        own_patches: The student's at the places of `patches`.
    """

    cls: tuple[Chunks, ...]
    patches: tuple[Chunks, ...]
    own_cls: Chunks = field(default_factory=list)
    own_patches: Chunks = field(default_factory=list)

    def transforms(self, *, normalise: bool) -> TargetTransforms:
        """Target transforms of CLS and patch tokens, one pair a teacher: PHI-S, or raw targets."""
        make = phi_s if normalise else identity
        return [
            (make(FeatureStatistics.of(cls)), make(FeatureStatistics.of(patches)) if patches else None)
            for cls, patches in zip(self.cls, self.patches, strict=True)
        ]

    def fit(self, heads: Sequence[TeacherHead], transforms: TargetTransforms) -> None:
        """Fit heads to what the student sees already; without tokens of its own they stay as they are."""
        if not self.own_cls:
            return
        for head, (cls_map, patch_map), cls, patches in zip(heads, transforms, self.cls, self.patches, strict=True):
            _fit_linear(head.cls, np.concatenate(self.own_cls), cls_map(np.concatenate(cls)))
            if head.patches is not None and patch_map is not None:
                own, wanted = (np.concatenate(part)[::_FITTED_PATCHES] for part in (self.own_patches, patches))
                _fit_linear(head.patches, own, patch_map(wanted))


def look_over(
    stream: ViewStream, views: int, *, patches: bool, student: Callable[[NDArray[np.uint8]], Tensor] | None
) -> FirstLook:
    """Look at some views.

    Args:
        stream: Where they come from.
        views: How many, spread over all.
        patches: Whether patch tokens are wanted.
        student: Takes `(B, H, W, 3)` uint8 to tokens `(B, 1 + grid², width)`, CLS first; None leaves it out.
    """
    teachers = range(len(stream.targets))
    look = FirstLook(cls=tuple([] for _ in teachers), patches=tuple([] for _ in teachers))
    # A few views at a time: patch tokens of all would take gigabytes.
    for pixels, features in stream.sample(views):
        for found, cls, some in zip(features, look.cls, look.patches, strict=True):
            cls.append(found.cls)
            if patches and found.patches is not None:
                some.append(_some(found.patches))
        if student is not None:
            tokens = student(pixels).numpy()
            look.own_cls.append(tokens[:, 0])
            look.own_patches.append(_some(tokens[:, 1:]))
    return look


def _some(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    step = max(patches.shape[1] // _SAMPLED_PATCHES, 1)
    return patches[:, ::step].reshape(-1, patches.shape[-1])


@torch.no_grad()
def _fit_linear(linear: nn.Linear, tokens: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(alphas=_PENALTIES).fit(tokens.astype(np.float64), targets)
    linear.weight.copy_(torch.from_numpy(found.coef_))
    linear.bias.copy_(torch.from_numpy(found.intercept_))
