"""What the student is asked for: its tokens, mapped by one head per teacher, equal the teacher's.

The heads exist during training only. Targets are normalised before the loss (see `phis`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas_edge.distill.targets.phis import TargetTransform
from atlas_edge.distill.training.config import HeadName, LossName


class Target(nn.Module):
    """A teacher's features as targets, computed where the student is: a target transform in float32.

    Args:
        transform: Of CLS tokens or of patch tokens.
    """

    matrix: Tensor
    mean: Tensor

    def __init__(self, transform: TargetTransform) -> None:
        super().__init__()
        # In no checkpoint: the transform is, in float64.
        self.register_buffer("matrix", torch.from_numpy(transform.matrix).float(), persistent=False)
        self.register_buffer("mean", torch.from_numpy(transform.mean).float(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Targets `(…, D)` float32 of features `(…, D)` on any device."""
        return F.linear(features.to(self.mean) - self.mean, self.matrix)


class MlpHead(nn.Linear):
    """A linear map, and beside it a network with one hidden layer of the targets' width, whose output begins at 0.

    It begins as the linear map alone, to which a fit sets it. What the student's own width cannot hold need not be
    linear in it (RADIO's adaptors are such networks: Ranzinger et al., CVPR 2024, arXiv:2312.06709, section 3.3).

    Args:
        width: Student's width.
        dim: Of the targets.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(width, dim)
        self.beside = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
        nn.init.zeros_(self.beside[-1].weight)
        nn.init.zeros_(self.beside[-1].bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(…, dim)` of `(…, width)`."""
        mapped: Tensor = super().forward(tokens) + self.beside(tokens)
        return mapped


class TeacherHead(nn.Module):
    """Maps from the student's tokens to one teacher's normalised targets, and these targets.

    Args:
        width: Student's width.
        cls: Transform of the teacher's CLS tokens (of its pooled features for a CNN).
        patches: Transform of its patch tokens; None without them.
        embed_dim: Of the student's embedding; None where that is its CLS token.
        kind: `linear`, or `mlp` for `MlpHead`.
    """

    def __init__(
        self,
        width: int,
        cls: TargetTransform,
        patches: TargetTransform | None,
        *,
        embed_dim: int | None = None,
        kind: HeadName = "linear",
    ) -> None:
        super().__init__()
        make = MlpHead if kind == "mlp" else nn.Linear
        self.cls = make(embed_dim or width, len(cls.mean))
        self.patches = None if patches is None else make(width, len(patches.mean))
        self.cls_target = Target(cls)
        self.patch_target = None if patches is None else Target(patches)


def feature_loss(predicted: Tensor, target: Tensor, name: LossName = "cosine") -> Tensor:
    """Distance of `(…, D)` predictions from their targets, a scalar.

    `cosine`: 0.9 · (1 − cosine) + 0.1 · smooth-L1 (GPFM, Ma et al., arXiv:2407.18449, eq. 4; Theia, Shang et al.,
    arXiv:2407.20179, section 3.2). `l1`: mean absolute error (LiteFM, arXiv:2602.14010).
    """
    if name == "l1":
        return F.l1_loss(predicted, target)
    cosine = F.cosine_similarity(predicted, target, dim=-1)
    return 0.9 * (1.0 - cosine).mean() + 0.1 * F.smooth_l1_loss(predicted, target)


def nested_loss(head: nn.Module, tokens: Tensor, target: Tensor, sizes: Sequence[int], name: LossName) -> Tensor:
    """Mean of `feature_loss` over prefixes of the embedding, so that its first dimensions alone are useful.

    Matryoshka representation learning with tied heads (Kusupati et al., NeurIPS 2022, arXiv:2205.13147, eq. 1).

    Args:
        head: Map of the whole embedding; of a prefix it sees zeros in the place of the rest.
        tokens: `(B, width)`.
        target: `(B, D)`.
        sizes: Prefix lengths; the whole width is always among them.
        name: See `feature_loss`.
    """
    width = tokens.shape[-1]
    lengths = sorted({width, *sizes})
    losses = [feature_loss(head(F.pad(tokens[..., :size], (0, width - size))), target, name) for size in lengths]
    return torch.stack(losses).mean()


def relational_loss(tokens: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the two batches' cosine similarity matrices.

    Source: similarity-preserving distillation (Tung & Mori, ICCV 2019, arXiv:1907.09682), with cosines.
    """
    ours, theirs = (F.normalize(batch, dim=-1) for batch in (tokens, target))
    return F.mse_loss(ours @ ours.T, theirs @ theirs.T)
