"""A student's output evened out without a change to what the network computes: by a turn and the last LayerNorm."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

# Channels whose deviation is below this share of the largest are scaled as if they had that share, so that what hardly
# varies is not blown up further. Of the 192 channels of `atlas2-demo` these are 97.
_SMALLEST_DEVIATION = 1e-2
# Views that differ by less than this, of outputs whose root mean square is 1, are the same view.
_NO_DEVIATION = 1e-3


def even_out(student: "VisionTransformer | Eva", outputs: Tensor, power: float) -> Tensor:
    """Turn the stream to the output's principal directions, and let the last LayerNorm centre and scale its channels.

    Over these tiles the CLS embedding then has zero mean and a root mean square of 1. A LayerNorm can scale channels
    only, and must see the stream's mean over channels as it was, which principal directions do not respect: channels
    are neighbouring directions mixed by Helmert's basis, so that power 1 gives them equal deviations and leaves some
    correlation between neighbours (whitening, Kessy et al., 2018, arXiv:1512.00809, would leave none).

    Args:
        student: Every norm's scale is 1, the last one's shift 0, and a LayerScale is one number; changed in place.
        outputs: `(tiles, width)` float32 CLS tokens after the last norm. Where all are the same, the scale stays 1.
        power: 0-1: of the deviations by which channels are divided, those under a hundredth of the largest excepted.

    Returns:
        The turn, `(width, width)` float32, orthogonal.
    """
    outputs = outputs.double()
    axes = _helmert(outputs.shape[1])
    directions = torch.linalg.eigh((outputs @ axes).T.cov(correction=0))[1].flip(1)
    # The mean over channels stays what it is, so that a LayerNorm of turned tokens is the turned LayerNorm.
    turn = axes @ directions.T @ axes.T + 1 / outputs.shape[1]
    _turn(student, turn.float())
    outputs = outputs @ turn.T
    deviations, centre = outputs.std(0, correction=0), outputs.mean(0)
    largest = float(deviations.max())
    scale = torch.ones_like(deviations)
    if largest > _NO_DEVIATION:
        scale = deviations.clamp_min(_SMALLEST_DEVIATION * largest) ** -power
        # The size is that of a LayerNorm without scale: root mean square 1.
        scale /= ((outputs - centre) * scale).square().mean().sqrt()
    student.norm.weight.copy_(scale)
    student.norm.bias.copy_(-scale * centre)
    return turn.float()


def _helmert(width: int) -> Tensor:
    """Helmert's orthonormal basis `(width, width - 1)` of the vectors of zero mean.

    Source: Lancaster, "The Helmert matrices", The American Mathematical Monthly 72, 1965. The first column lives in the
    first two channels, and each that follows takes one more: directions that are given to it in descending order of
    variance leave no more than a trace of themselves in the channels of later ones.
    """
    rows = torch.arange(width, dtype=torch.float64)[:, None]
    columns = torch.arange(1, width, dtype=torch.float64)
    basis = torch.where(rows < columns, -1.0, torch.where(rows == columns, columns, 0.0))
    return basis / (columns * (columns + 1)).sqrt()


def _turn(student: Any, turn: Tensor) -> None:
    """Turn the residual stream by an orthogonal map that leaves the mean over channels alone.

    Every norm's scale must be 1 and a LayerScale one number: the network then computes the same, turned.
    """
    projection = student.patch_embed.proj
    projection.weight.copy_(torch.einsum("od,dihw->oihw", turn, projection.weight))
    projection.bias.copy_(turn @ projection.bias)
    for token in (student.cls_token, student.pos_embed, student.reg_token):
        if token is not None:
            token.copy_(token @ turn.T)
    for block in student.blocks:
        for norm in (block.norm1, block.norm2):
            norm.bias.copy_(turn @ norm.bias)
        for reader in (block.attn.qkv, block.mlp.fc1):
            reader.weight.copy_(reader.weight @ turn.T)
        for writer in (block.attn.proj, block.mlp.fc2):
            writer.weight.copy_(turn @ writer.weight)
            writer.bias.copy_(turn @ writer.bias)
