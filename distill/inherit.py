"""A narrow student's first weights, taken in closed form from a wider ViT teacher.

The student has the teacher's depth but fewer channels, heads and neurons, and possibly another patch side. Weights
are not copied channel by channel (weight selection, Xu et al., ICLR 2024, arXiv:2311.18823) but fitted:

1. The teacher's residual stream is rotated to its principal directions and cut (SliceGPT, Ashkboos et al., ICLR
   2024, arXiv:2401.15024). One direction is kept for the mean, which LayerNorm removes, so that the student's
   LayerNorm acts on the cut stream as the teacher's does on the whole.
2. Block by block, heads and neurons are chosen by the least-squares error of what they write to the stream, and
   every linear layer is refitted by ridge regression from the student's own activations to the teacher's. Each
   fit sees the errors of those before it and corrects them.

Nothing is trained: a few hundred tiles and a few minutes on a CPU give a student whose embeddings already follow the
teacher's, from which distillation starts.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

_RIDGE = 3e-3
# Neurons are removed in groups of this many between two updates of the Gram matrix's inverse.
_PRUNE_STEP = 128
# CLS tokens carry this share of every fit: there is one for some 200 patch tokens.
_CLS_SHARE = 0.1
# Root mean square that fc2's weights get: our choice, the order of a trained ViT's.
_WRITER_SIZE = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """What the fit achieved.

    Attributes:
        stream_kept: Share of the teacher's normalised stream energy inside the student's subspace, 0-1.
        head_weight: `(teacher width, student width)`: best linear map from student tokens to teacher tokens.
        head_bias: `(teacher width,)`.
        cls_cosine: Mean cosine of the mapped CLS token with the teacher's on the fitted tiles.
    """

    stream_kept: float
    head_weight: Tensor
    head_bias: Tensor
    cls_cosine: float


@torch.inference_mode()
def inherit(
    student: "VisionTransformer", teacher: "VisionTransformer", student_images: Tensor, teacher_images: Tensor
) -> Inherited:
    """Overwrite a student's weights with those fitted to its teacher.

    Args:
        student: Plain timm ViT with as many blocks as the teacher and a head size equal to its teacher's.
        teacher: timm ViT whose patch grid on `teacher_images` equals the student's on `student_images`.
        student_images: `(N, 3, H, W)` float32, normalised; a few hundred tiles.
        teacher_images: The same tiles at the teacher's resolution and normalisation.

    Raises:
        ValueError: The two networks do not fit each other.
    """
    _check(student, teacher)
    width = student.embed_dim
    states = _embed(teacher, teacher_images)
    basis, kept = _stream_basis(teacher, states, width)
    _inherit_embedding(student, teacher, basis)
    own = _embed(student, student_images)
    for student_block, teacher_block in zip(student.blocks, teacher.blocks, strict=True):
        own, states = _inherit_attention(student_block, teacher_block, own, states, basis)
        own, states = _inherit_mlp(student_block, teacher_block, own, states, basis)
    _reset_norm(student.norm)
    _rescale(student)
    target = teacher.norm(states)
    weight, bias = _ridge(student.norm(own), target, _row_weights(states))
    mapped = student.norm(own[:, :1]) @ weight.T + bias
    cosine = F.cosine_similarity(mapped, target[:, :1], dim=-1).mean()
    return Inherited(stream_kept=kept, head_weight=weight, head_bias=bias, cls_cosine=float(cosine))


def _check(student: "VisionTransformer", teacher: "VisionTransformer") -> None:
    if len(student.blocks) != len(teacher.blocks):
        raise ValueError(f"student has {len(student.blocks)} blocks, teacher {len(teacher.blocks)}")
    if student.num_prefix_tokens != teacher.num_prefix_tokens:
        raise ValueError(f"student has {student.num_prefix_tokens} prefix tokens, teacher {teacher.num_prefix_tokens}")
    if student.pos_embed.shape[1] != teacher.pos_embed.shape[1]:
        raise ValueError(
            f"student has {student.pos_embed.shape[1]} position embeddings, teacher {teacher.pos_embed.shape[1]}"
        )
    ours, theirs = student.blocks[0].attn, teacher.blocks[0].attn
    if ours.head_dim != theirs.head_dim or ours.num_heads > theirs.num_heads:
        raise ValueError(
            f"student has {ours.num_heads} heads of {ours.head_dim}, teacher {theirs.num_heads} of {theirs.head_dim}"
        )


def _embed(vit: "VisionTransformer", images: Tensor) -> Tensor:
    tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    return tokens


def _stream_basis(teacher: "VisionTransformer", states: Tensor, width: int) -> tuple[Tensor, float]:
    """Orthonormal map `(teacher width, width)` of the centred stream, whose image has zero mean."""
    dim = states.shape[-1]
    total = torch.zeros(dim, dim, dtype=torch.float64)
    for block in teacher.blocks:
        total += _second_moment(states)
        states = _after_attention(block, states)
        total += _second_moment(states)
        states = _after_mlp(block, states)
    # The output is what the student is asked for in the end: it weighs as much as a third of all inner layers.
    total += _second_moment(states) * len(teacher.blocks)
    eigenvalues, eigenvectors = torch.linalg.eigh(total)
    keep = eigenvectors[:, -(width - 1) :].float()
    kept = float(eigenvalues[-(width - 1) :].sum() / eigenvalues.sum())
    # Orthonormal basis of the vectors of R^width with zero mean: the student's LayerNorm then subtracts nothing.
    ones = torch.ones(width, 1) / width**0.5
    complement = torch.linalg.svd(torch.eye(width) - ones @ ones.T)[0][:, : width - 1]
    return keep @ complement.T, kept


def _second_moment(states: Tensor) -> Tensor:
    normed = F.layer_norm(states, states.shape[-1:])
    weights = _row_weights(torch.ones_like(normed))
    flat = normed.flatten(0, 1)
    return ((flat * weights[:, None]).T @ flat).double()


def _row_weights(states: Tensor) -> Tensor:
    """Weight of each token in a fit, summing to 1: CLS gets its share, and every token counts by direction.

    LayerNorm divides each token by its deviation, so an error matters relative to it.
    """
    images, tokens, _ = states.shape
    weights = torch.full((images, tokens), (1 - _CLS_SHARE) / (tokens - 1))
    weights[:, 0] = _CLS_SHARE
    centred = states - states.mean(-1, keepdim=True)
    energy = centred.square().mean(-1)
    weights = weights / energy.clamp_min(1e-6) if float(centred.abs().max()) > 0 else weights
    weights = weights.flatten()
    return weights / weights.sum()


def _inherit_embedding(student: "VisionTransformer", teacher: "VisionTransformer", basis: Tensor) -> None:
    from timm.layers import resample_patch_embed

    kernel = teacher.patch_embed.proj.weight
    side = list(student.patch_embed.patch_size)
    if list(kernel.shape[-2:]) != side:
        kernel = resample_patch_embed(kernel, side)
    student.patch_embed.proj.weight.copy_(torch.einsum("oihw,od->dihw", kernel, basis))
    student.patch_embed.proj.bias.copy_(teacher.patch_embed.proj.bias @ basis)
    student.cls_token.copy_(teacher.cls_token @ basis)
    student.pos_embed.copy_(teacher.pos_embed @ basis)
    if student.reg_token is not None:
        student.reg_token.copy_(teacher.reg_token @ basis)


def _inherit_attention(student: Any, teacher: Any, own: Tensor, states: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    _reset_norm(student.norm1)
    _reset_scale(student.ls1)
    attention = teacher.attn
    heads, head_dim = attention.num_heads, attention.head_dim
    weights = _row_weights(states)
    qkv = attention.qkv(teacher.norm1(states))
    mixed = _mix(qkv, heads)
    after = states + teacher.ls1(attention.proj(mixed))
    target = after @ basis - own
    chosen = _choose_heads(mixed, (after - states) @ basis, weights, heads, student.attn.num_heads)
    columns = torch.cat([torch.arange(h * head_dim, (h + 1) * head_dim) for h in chosen])
    wanted = qkv.unflatten(-1, (3, heads * head_dim))[..., columns].flatten(-2)
    _fit(student.attn.qkv, student.norm1(own), wanted, weights)
    own_mixed = _mix(student.attn.qkv(student.norm1(own)), len(chosen))
    _fit(student.attn.proj, own_mixed, target, weights)
    return own + student.attn.proj(own_mixed), after


def _mix(qkv: Tensor, heads: int) -> Tensor:
    images, tokens, _ = qkv.shape
    out = []
    for part in qkv.split(64):
        q, k, v = part.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        out.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
    return torch.cat(out).view(images, tokens, -1)


def _choose_heads(mixed: Tensor, delta: Tensor, weights: Tensor, heads: int, wanted: int) -> tuple[int, ...]:
    gram, cross, power = _moments(mixed, delta, weights)
    size = (gram.shape[0] - 1) // heads
    best: tuple[float, tuple[int, ...]] = (float("inf"), ())
    for chosen in itertools.combinations(range(heads), wanted):
        index = torch.cat([torch.arange(h * size, (h + 1) * size) for h in chosen] + [torch.tensor([heads * size])])
        solution = torch.linalg.solve(_damped(gram[index][:, index]), cross[index])
        error = power - float((cross[index] * solution).sum())
        best = min(best, (error, chosen))
    return best[1]


def _inherit_mlp(student: Any, teacher: Any, own: Tensor, states: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    _reset_norm(student.norm2)
    _reset_scale(student.ls2)
    weights = _row_weights(states)
    hidden = teacher.mlp.fc1(teacher.norm2(states))
    active = teacher.mlp.act(hidden)
    after = states + teacher.ls2(teacher.mlp.fc2(active))
    chosen = _choose_neurons(active, (after - states) @ basis, weights, student.mlp.fc1.out_features)
    del active
    _fit(student.mlp.fc1, student.norm2(own), hidden[..., chosen], weights)
    own_active = student.mlp.act(student.mlp.fc1(student.norm2(own)))
    _fit(student.mlp.fc2, own_active, after @ basis - own, weights)
    return own + student.mlp.fc2(own_active), after


def _choose_neurons(active: Tensor, delta: Tensor, weights: Tensor, wanted: int) -> Tensor:
    """Backward elimination by what the fit loses without a neuron: |w_j|^2 / (G^-1)_jj (Optimal Brain Surgeon)."""
    gram, cross, _ = _moments(active, delta, weights)
    bias = gram.shape[0] - 1
    index = torch.arange(bias)
    while len(index) > wanted:
        rows = torch.cat([index, torch.tensor([bias])])
        inverse = torch.linalg.inv(_damped(gram[rows][:, rows]))
        loss = (inverse @ cross[rows]).square().sum(1)[:-1] / inverse.diagonal()[:-1]
        remove = min(_PRUNE_STEP, len(index) - wanted)
        index = index[loss.argsort(descending=True)[: len(index) - remove].sort().values]
    return index


def _after_attention(block: Any, states: Tensor) -> Tensor:
    mixed = _mix(block.attn.qkv(block.norm1(states)), block.attn.num_heads)
    return states + block.ls1(block.attn.proj(mixed))


def _after_mlp(block: Any, states: Tensor) -> Tensor:
    return torch.cat([part + block.ls2(block.mlp(block.norm2(part))) for part in states.split(64)])


def _reset_scale(scale: nn.Module) -> None:
    # A student with LayerScale gets one that does nothing: the fitted layers already have the right size.
    gamma = getattr(scale, "gamma", None)
    if gamma is not None:
        nn.init.ones_(gamma)


def _reset_norm(norm: nn.Module) -> None:
    # The fitted linear layers hold the teacher's scale and shift.
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _fit(linear: nn.Linear, inputs: Tensor, target: Tensor, weights: Tensor) -> None:
    weight, bias = _ridge(inputs, target, weights)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _rescale(student: "VisionTransformer") -> None:
    """Scale the whole stream so that what writes to it has weights of a trainable size.

    Every reader of the stream is a LayerNorm, so the network computes the same. A teacher with small LayerScale leaves
    matrices so small that one step of Adam, whose size does not depend on them, would undo the fit.
    """
    sizes = torch.stack([block.mlp.fc2.weight.square().mean().sqrt() for block in student.blocks])
    scale = max(_WRITER_SIZE / float(sizes.median().clamp_min(1e-8)), 1.0)
    writers = [student.patch_embed.proj]
    for block in student.blocks:
        writers += [block.attn.proj, block.mlp.fc2]
    tokens = [student.cls_token, student.pos_embed, student.reg_token]
    for tensor in [*tokens, *(parameter for writer in writers for parameter in writer.parameters())]:
        if tensor is not None:
            tensor.mul_(scale)


def _ridge(inputs: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    gram, cross, _ = _moments(inputs, target, weights)
    solution = torch.linalg.solve(_damped(gram), cross).float()
    return solution[:-1].T.contiguous(), solution[-1]


def _moments(inputs: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weighted Gram matrix with a bias column, cross moments, and the target's energy."""
    x, y = inputs.flatten(0, 1), target.flatten(0, 1)
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    scaled = x * weights[:, None]
    return (scaled.T @ x).double(), (scaled.T @ y).double(), float((y.square() * weights[:, None]).sum())


def _damped(gram: Tensor) -> Tensor:
    return gram + torch.eye(len(gram), dtype=gram.dtype) * (_RIDGE * gram.diagonal()[:-1].mean())
