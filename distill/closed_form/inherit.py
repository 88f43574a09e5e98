"""A narrow student's first weights, taken in closed form from a wider ViT teacher.

The student has fewer channels, heads and neurons, possibly fewer blocks, and possibly another patch side. Weights are
not copied channel by channel (weight selection, Xu et al., ICLR 2024, arXiv:2311.18823) but fitted:

1. The teacher's residual stream is rotated to its principal directions and cut (SliceGPT, Ashkboos et al., ICLR
   2024, arXiv:2401.15024). One direction is kept for the mean, which LayerNorm removes, so that the student's
   LayerNorm acts on the cut stream as the teacher's does on the whole.
2. Block by block, heads and neurons are chosen by the least-squares error of what they write to the stream, and
   every linear layer is refitted by ridge regression from the student's own activations to the teacher's. Each
   fit sees the errors of those before it and corrects them. Of a deeper teacher the blocks that turn the stream most
   are taken (ShortGPT, Men et al., arXiv:2403.03853), and what those between them add is part of the errors. Queries
   and keys of rotary networks are fitted before they are turned: the student turns them by its teacher's angles. For
   a student that will run in INT8 its own activations are those of the rounded student: directions that rounding
   drowns are leant on less, and its errors are made up for.
3. The output is centred and its spread evened out. A teacher's CLS tokens of stained tissue differ most by colour and
   density: a few directions hold nearly all variance, and cosines say little else. The student's channels are turned
   to the principal directions of its own CLS tokens, and the last LayerNorm takes the mean away and divides each by a
   power of its deviation (see `whitening`).

Nothing is trained: a few hundred tiles and a few minutes on a CPU give a student whose embeddings already follow the
teacher's, from which distillation starts.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas_edge.distill.closed_form.blocks import (
    angles,
    attend,
    embed,
    layer_scale,
    mix,
    qkv_biases,
    queries_keys_values,
    run_block,
    scaled,
)
from atlas_edge.distill.closed_form.inheritable import check_parts, check_sizes, neurons_and_output
from atlas_edge.distill.closed_form.moments import Moments, Streams, damped, seen_tokens, token_shares
from atlas_edge.distill.closed_form.whitening import even_out
from atlas_edge.distill.rounding import rounded_input, rounding

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

# Neurons are removed in groups of this many between two updates of the Gram matrix's inverse.
_PRUNE_STEP = 128
# Batches on which the stream's directions and the neurons are chosen; the fits see all of them.
_BASIS_BATCHES = 8
_NEURON_BATCHES = 16
# Choices of heads that are tried in each block: 6 of 12 heads are 924.
_MOST_CHOICES = 1_000
# Damping of the shift of a norm that stands for biases which the student's layer has not.
_SHIFT_RIDGE = 1e-2
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
    student: "VisionTransformer | Eva",
    teacher: "VisionTransformer | Eva",
    images: Iterable[Tensor],
    teacher_images: Iterable[Tensor],
    *,
    half: bool = False,
    whitening: float = 0.5,
    rounded: bool = False,
) -> Inherited:
    """Overwrite a student's weights with those fitted to its teacher.

    Of the images only one batch is looked at at a time: all of the teacher's first, then the student's. The two
    residual streams are held, some 0.3 GB a thousand tiles of 197 tokens for ViT-S and half as much for ViT-Ti.

    Args:
        student: timm's ViT, or its Eva with rotary positions, with at most as many blocks as the teacher, a head size
            equal to its teacher's, and the same kind of positions.
        teacher: The same; its patch grid on its images equals the student's on its own.
        images: Student's batches, `(B, 3, H, W)` float32, normalised. A few hundred tiles at least: the fit of the
            CLS token sees one row a tile.
        teacher_images: Teacher's batches of the same tiles.
        half: Compute activations in bfloat16, about twice as fast where the CPU has it, half as fast where it has not;
            the fits stay float64.
        whitening: 0-1: the CLS embedding's channels are divided by their deviation to this power (see `even_out`).
        rounded: Fit to what the student's layers read and compute when INT8 rounds them.

    Raises:
        ValueError: The two networks do not fit each other.
    """
    check_parts(student, teacher)
    check_sizes(student, teacher)
    teacher_states = [embed(teacher, batch) for batch in teacher_images]
    looked_at = teacher_states[:: max(len(teacher_states) // _BASIS_BATCHES, 1)]
    basis, kept = _stream_basis(teacher, looked_at, student.embed_dim)
    table = angles(teacher)
    taken = _blocks_to_take(teacher, looked_at, len(student.blocks), table)
    _inherit_embedding(student, teacher, basis)
    streams = [
        Streams(own=embed(student, batch), teacher=states, tokens=seen_tokens(states.shape[1], number))
        for number, (batch, states) in enumerate(zip(images, teacher_states, strict=True))
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        done = 0
        for student_block, number in zip(student.blocks, taken, strict=True):
            _pass_by(teacher.blocks[done:number], streams, table)
            teacher_block, done = teacher.blocks[number], number + 1
            _inherit_attention(student_block, teacher_block, streams, basis, table, rounded=rounded)
            _inherit_mlp(student_block, teacher_block, streams, basis, rounded=rounded)
    _reset_norm(student.norm)
    _rescale(student)
    fit = Moments()
    for part in streams:
        fit.add(part, student.norm(part.own), teacher.norm(part.teacher))
    weight, bias = fit.ridge()
    cosines = [
        F.cosine_similarity(student.norm(part.own[:, :1]) @ weight.T + bias, teacher.norm(part.teacher[:, :1]), dim=-1)
        for part in streams
    ]
    turn = even_out(student, torch.cat([student.norm(part.own[:, 0]) for part in streams]), whitening)
    weight = weight @ turn.T / student.norm.weight
    bias = bias - weight @ student.norm.bias
    return Inherited(stream_kept=kept, head_weight=weight, head_bias=bias, cls_cosine=float(torch.cat(cosines).mean()))


def _stream_basis(teacher: Any, batches: Sequence[Tensor], width: int) -> tuple[Tensor, float]:
    """Orthonormal map `(teacher width, width)` of the centred stream, whose image has zero mean."""
    dim = batches[0].shape[-1]
    total, table = torch.zeros(dim, dim, dtype=torch.float64), angles(teacher)
    for batch in batches:
        states = batch
        for block in teacher.blocks:
            total += _second_moment(states)
            states = states + attend(block, states, table)
            total += _second_moment(states)
            states = states + scaled(block, 2, block.mlp(block.norm2(states)))
        # The output is what the student is asked for in the end: it weighs as much as a third of all inner layers.
        total += _second_moment(states) * len(teacher.blocks)
    eigenvalues, eigenvectors = torch.linalg.eigh(total)
    keep = eigenvectors[:, -(width - 1) :].float()
    kept = float(eigenvalues[-(width - 1) :].sum() / eigenvalues.sum())
    # Orthonormal basis of the vectors of R^width with zero mean: the student's LayerNorm then subtracts nothing.
    ones = torch.ones(width, 1) / width**0.5
    complement = torch.linalg.svd(torch.eye(width) - ones @ ones.T)[0][:, : width - 1]
    return keep @ complement.T, kept


def _blocks_to_take(teacher: Any, batches: Sequence[Tensor], count: int, table: Tensor | None) -> list[int]:
    """The blocks that turn the stream most, and the last one, in their order."""
    turns = torch.zeros(len(teacher.blocks))
    if count == len(turns):
        return list(range(count))
    for batch in batches:
        states = batch
        for number, block in enumerate(teacher.blocks):
            after = run_block(block, states, table)
            turns[number] += ((1 - F.cosine_similarity(states, after, dim=-1)) * token_shares(states)).sum()
            states = after
    turns[-1] = torch.inf
    return sorted(turns.topk(count).indices.tolist())


def _pass_by(blocks: Iterable[nn.Module], streams: Sequence[Streams], table: Tensor | None) -> None:
    """Take the teacher's streams through blocks that the student has not."""
    for block in blocks:
        for part in streams:
            part.teacher.copy_(run_block(block, part.teacher, table))


def _second_moment(states: Tensor) -> Tensor:
    normed = F.layer_norm(states, states.shape[-1:])
    flat = normed.flatten(0, 1)
    return ((flat * token_shares(normed).flatten()[:, None]).T @ flat).double()


def _inherit_embedding(student: Any, teacher: Any, basis: Tensor) -> None:
    from timm.layers import resample_patch_embed

    kernel = teacher.patch_embed.proj.weight
    side = list(student.patch_embed.patch_size)
    if list(kernel.shape[-2:]) != side:
        kernel = resample_patch_embed(kernel, side)
    student.patch_embed.proj.weight.copy_(torch.einsum("oihw,od->dihw", kernel, basis))
    student.patch_embed.proj.bias.copy_(teacher.patch_embed.proj.bias @ basis)
    student.cls_token.copy_(teacher.cls_token @ basis)
    if student.pos_embed is not None:
        student.pos_embed.copy_(teacher.pos_embed @ basis)
    if student.reg_token is not None:
        student.reg_token.copy_(teacher.reg_token @ basis)


def _inherit_attention(
    student: Any, teacher: Any, streams: Sequence[Streams], basis: Tensor, table: Tensor | None, *, rounded: bool
) -> None:
    _reset_norm(student.norm1)
    _reset_scale(student, 1)
    attention = teacher.attn
    heads, head_dim = attention.num_heads, attention.head_dim
    written, read, weights = Moments(), Moments(), [part.weights for part in streams]
    for part, rows in zip(streams, weights, strict=True):
        qkv = queries_keys_values(attention, teacher.norm1(part.teacher))
        mixed = mix(qkv, attention, table)
        delta = scaled(teacher, 1, attention.proj(mixed))
        written.add(part, mixed, delta @ basis, rows)
        read.add(part, _seen(student.norm1(part.own), rounded=rounded), qkv, rows)
        part.teacher += delta
    chosen = _choose_heads(written, heads, student.attn.num_heads)
    columns = torch.cat([torch.arange(h * head_dim, (h + 1) * head_dim) for h in chosen])
    _fit_qkv(student, read, [columns + part * heads * head_dim for part in range(3)])

    def mixed_of(part: Streams) -> Tensor:
        return mix(queries_keys_values(student.attn, student.norm1(part.own)), student.attn, table)

    _fit_writer(student.attn.proj, mixed_of, streams, basis, weights, rounded=rounded)


def _fit_qkv(student: Any, read: Moments, columns: Sequence[Tensor]) -> None:
    """Fit queries, keys and values to the teacher's; what biases they have not, the shift of the norm before makes up.

    Args:
        student: Its block.
        read: Moments of what its norm gives and of what the teacher's layer does.
        columns: The teacher's channels of the chosen heads' queries, keys and values.
    """
    biases = qkv_biases(student.attn)
    fitted = [read.ridge(some) for some in columns]
    without = [pair for pair, bias in zip(fitted, biases, strict=True) if bias is None]
    if without:
        weight, wanted = (torch.cat(parts).double() for parts in zip(*without, strict=True))
        gram = weight.T @ weight
        gram += torch.eye(len(gram), dtype=gram.dtype) * (_SHIFT_RIDGE * gram.diagonal().mean())
        shift = torch.linalg.solve(gram, weight.T @ wanted)
        student.norm1.bias.copy_(shift)
        moved = read.shifted(shift)
        fitted = [
            moved.ridge(some) if bias is not None else (moved.ridge_without_bias(some), torch.zeros(len(some)))
            for some, bias in zip(columns, biases, strict=True)
        ]
    student.attn.qkv.weight.copy_(torch.cat([weight for weight, _ in fitted]))
    for bias, (_, found) in zip(biases, fitted, strict=True):
        if bias is not None:
            bias.copy_(found)


def _inherit_mlp(student: Any, teacher: Any, streams: Sequence[Streams], basis: Tensor, *, rounded: bool) -> None:
    _reset_norm(student.norm2)
    _reset_scale(student, 2)
    written, read, weights = Moments(), Moments(), [part.weights for part in streams]
    # The Gram matrix of the hidden layer is what costs: neurons are chosen on a part of the tiles.
    looked_at = set(range(0, len(streams), max(len(streams) // _NEURON_BATCHES, 1)))
    for number, (part, rows) in enumerate(zip(streams, weights, strict=True)):
        hidden, added = neurons_and_output(teacher.mlp, teacher.norm2(part.teacher))
        active, delta = student.mlp.act(hidden), scaled(teacher, 2, added)
        if number in looked_at:
            written.add(part, active, delta @ basis, rows)
        read.add(part, _seen(student.norm2(part.own), rounded=rounded), hidden, rows)
        part.teacher += delta
    chosen = _choose_neurons(written, student.mlp.fc1.out_features)
    _set(student.mlp.fc1, read.ridge(chosen))

    def activate(part: Streams) -> Tensor:
        active: Tensor = student.mlp.act(student.mlp.fc1(student.norm2(part.own)))
        return active

    _fit_writer(student.mlp.fc2, activate, streams, basis, weights, rounded=rounded)


def _fit_writer(
    linear: nn.Linear,
    inputs: Callable[[Streams], Tensor],
    streams: Sequence[Streams],
    basis: Tensor,
    weights: Sequence[Tensor],
    *,
    rounded: bool,
) -> None:
    """Fit what a layer adds to the student's stream, so that it makes up for all errors so far, and add it."""
    fit = Moments()
    for part, rows in zip(streams, weights, strict=True):
        with torch.autocast("cpu", enabled=False):
            missing = part.teacher @ basis - part.own
        with rounding(wanted=rounded):
            read = inputs(part)
        fit.add(part, _seen(read, rounded=rounded), missing, rows)
    _set(linear, fit.ridge())
    for part in streams:
        with rounding(wanted=rounded):
            part.own += linear(inputs(part))


def _choose_heads(moments: Moments, heads: int, wanted: int) -> tuple[int, ...]:
    gram, cross = moments.gram, moments.cross
    size = (gram.shape[0] - 1) // heads

    def error_of(chosen: tuple[int, ...]) -> float:
        index = torch.cat([torch.arange(h * size, (h + 1) * size) for h in chosen] + [torch.tensor([heads * size])])
        solution = torch.linalg.solve(damped(gram[index][:, index]), cross[index])
        return moments.power - float((cross[index] * solution).sum())

    left = tuple(range(heads))
    # Heads are left out one at a time until all ways to choose the rest can be tried.
    while math.comb(len(left), wanted) > _MOST_CHOICES:
        left = min(itertools.combinations(left, len(left) - 1), key=error_of)
    return min(itertools.combinations(left, wanted), key=error_of)


def _choose_neurons(moments: Moments, wanted: int) -> Tensor:
    """Backward elimination by what the fit loses without a neuron: |w_j|^2 / (G^-1)_jj (Optimal Brain Surgeon)."""
    gram, cross = moments.gram, moments.cross
    bias = gram.shape[0] - 1
    index = torch.arange(bias)
    while len(index) > wanted:
        rows = torch.cat([index, torch.tensor([bias])])
        inverse = torch.linalg.inv(damped(gram[rows][:, rows]))
        loss = (inverse @ cross[rows]).square().sum(1)[:-1] / inverse.diagonal()[:-1]
        remove = min(_PRUNE_STEP, len(index) - wanted)
        index = index[loss.argsort(descending=True)[: len(index) - remove].sort().values]
    return index


def _reset_scale(block: Any, number: int) -> None:
    # A student with LayerScale gets one that does nothing: the fitted layers already have the right size.
    gamma = layer_scale(block, number)
    if gamma is not None:
        nn.init.ones_(gamma)


def _reset_norm(norm: nn.Module) -> None:
    # The fitted linear layers hold the teacher's scale and shift.
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _seen(values: Tensor, *, rounded: bool) -> Tensor:
    """What a layer reads of its input."""
    return rounded_input(values) if rounded else values


def _set(linear: nn.Linear, fitted: tuple[Tensor, Tensor]) -> None:
    linear.weight.copy_(fitted[0])
    linear.bias.copy_(fitted[1])


def _rescale(student: Any) -> None:
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
