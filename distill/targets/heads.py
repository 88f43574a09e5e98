"""What a run takes from some views before its first step: statistics of the targets, and heads for pretrained weights.

Through a random head the first gradients distort features that are good already (Kumar et al., ICLR 2022,
arXiv:2202.10054): a head that is fitted to them first does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_edge.distill.data.stream import ViewStream
from atlas_edge.distill.targets.losses import TeacherHead
from atlas_edge.distill.targets.phis import FeatureStatistics, TargetTransform, identity, phi_s
from atlas_edge.errors import UsageError

Chunks = list[NDArray[np.float32]]
TargetTransforms = list[tuple[TargetTransform, TargetTransform | None]]

# Patch tokens looked at of each view, at places drawn anew for every few views: neighbours are alike.
_SAMPLED_PATCHES = 16
# Heads are fitted to the first of those.
_FITTED_PATCHES = 4
# Ridge penalties to choose from by leaving one token out, for tokens of a root mean square of about 1.
_PENALTIES = 10.0 ** np.arange(-2, 6)


@dataclass(slots=True)
class FirstLook:
    """Tokens of the views that were looked at, in chunks of float32.

    Attributes:
        cls: CLS tokens `(n, width)`, one list a teacher.
        patches: Some patch tokens of each view `(n, places, width)`, one list a teacher; empty where none are wanted.
        own_cls: The student's embeddings; empty where heads are to stay random.
        own_patches: The student's patch tokens at the same places.
    """

    cls: tuple[Chunks, ...]
    patches: tuple[Chunks, ...]
    own_cls: Chunks = field(default_factory=list)
    own_patches: Chunks = field(default_factory=list)

    def transforms(self, *, normalise: bool) -> TargetTransforms:
        """Target transforms of CLS and patch tokens, one pair a teacher: PHI-S, or raw targets."""
        make = phi_s if normalise else identity
        return [
            (make(FeatureStatistics.of(cls)), make(FeatureStatistics.of(map(_rows, patches))) if patches else None)
            for cls, patches in zip(self.cls, self.patches, strict=True)
        ]

    def fit(self, heads: Sequence[TeacherHead], transforms: TargetTransforms) -> None:
        """Fit heads from the student's tokens to the targets; without tokens of its own they stay as they are.

        Raises:
            UsageError: The student's tokens are not finite.
        """
        if not self.own_cls:
            return
        if not all(np.isfinite(part).all() for part in (*self.own_cls, *self.own_patches)):
            raise UsageError(
                "the student gives features that are not finite", hint="use --precision fp32, or another --student"
            )
        for head, (cls_map, patch_map), cls, patches in zip(heads, transforms, self.cls, self.patches, strict=True):
            _fit_linear(head.cls, np.concatenate(self.own_cls), cls_map(np.concatenate(cls)))
            if head.patches is not None and patch_map is not None:
                own, wanted = (
                    np.concatenate([_rows(chunk[:, :_FITTED_PATCHES]) for chunk in chunks])
                    for chunks in (self.own_patches, patches)
                )
                _fit_linear(head.patches, own, patch_map(wanted))


def look_over(
    stream: ViewStream,
    views: int,
    *,
    patches: bool,
    student: Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]] | None,
) -> FirstLook:
    """Look at some views.

    Args:
        stream: Where they come from.
        views: How many, spread over all.
        patches: Whether patch tokens are wanted.
        student: Takes `(B, H, W, 3)` uint8 to embeddings `(B, D)` and patch tokens `(B, grid², width)`; None leaves it
            out.
    """
    teachers = range(len(stream.targets))
    generator = np.random.default_rng(0)
    look = FirstLook(cls=tuple([] for _ in teachers), patches=tuple([] for _ in teachers))
    # A few views at a time: patch tokens of all would take gigabytes.
    for pixels, features in stream.sample(views):
        grids = [found.patches.shape[1] for found in features if patches and found.patches is not None]
        # All grids are the student's.
        places = generator.permutation(grids[0])[:_SAMPLED_PATCHES] if grids else None
        for found, cls, some in zip(features, look.cls, look.patches, strict=True):
            cls.append(_on_host(found.cls))
            if places is not None and found.patches is not None:
                some.append(_on_host(found.patches[:, torch.from_numpy(places)]))
        if student is not None:
            embeddings, tokens = student(pixels)
            look.own_cls.append(embeddings.numpy())
            if places is not None:
                look.own_patches.append(tokens.numpy()[:, places])
    return look


def _on_host(tokens: Tensor) -> NDArray[np.float32]:
    host: NDArray[np.float32] = tokens.float().cpu().numpy()
    return host


def _rows(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    return tokens.reshape(-1, tokens.shape[-1])


@torch.no_grad()
def _fit_linear(linear: nn.Linear, tokens: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(alphas=_PENALTIES).fit(tokens.astype(np.float64), targets)
    linear.weight.copy_(torch.from_numpy(found.coef_))
    linear.bias.copy_(torch.from_numpy(found.intercept_))
