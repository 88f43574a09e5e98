"""Whether a student can take its first weights from a teacher: both must be ViTs whose every part the fit knows."""

from typing import Any

import torch
from torch import Tensor, nn

from atlas_edge.distill.closed_form.blocks import angles


def check_parts(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse what a fit would leave out, or could not be written to.

    Raises:
        ValueError: It names the part.
    """
    for role, vit in (("student", student), ("teacher", teacher)):
        part = _unknown_part(vit)
        if part is not None:
            raise ValueError(f"the {role} {part}, of which the fit in closed form knows nothing")
    gated = next((type(block.mlp).__name__ for block in student.blocks if _is_gated(block.mlp)), None)
    if gated is not None:
        raise ValueError(f"the student has gated MLPs ({gated}), which the fit cannot choose the products of")
    others = [part for block in student.blocks for part in (block.attn.proj, block.mlp.fc1, block.mlp.fc2)]
    if any(layer.bias is None for layer in others):
        raise ValueError("the student has linear layers without bias, which the fit needs")


def neurons_and_output(mlp: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What an MLP's neurons get, `(B, tokens, neurons)`, and what it gives, `(B, tokens, width)`.

    Of a gated MLP each gate and each value counts as a neuron: what their products add, other neurons make up for.
    """
    from timm.layers import GluMlp, SwiGLU

    if isinstance(mlp, SwiGLU):
        gate, value = mlp.fc1_g(tokens), mlp.fc1_x(tokens)
        return torch.cat([gate, value], dim=-1), mlp.fc2(mlp.act(gate) * value)
    hidden: Tensor = mlp.fc1(tokens)
    if not isinstance(mlp, GluMlp):
        return hidden, mlp.fc2(mlp.act(hidden))
    first, second = hidden.chunk(2, dim=-1)
    return hidden, mlp.fc2(first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second)


def check_sizes(student: Any, teacher: Any) -> None:
    """Refuse networks whose parts do not correspond, the teacher at a size at which its patch grid is the student's.

    Raises:
        ValueError: It names the part.
    """
    if len(student.blocks) > len(teacher.blocks):
        raise ValueError(f"student has {len(student.blocks)} blocks, teacher {len(teacher.blocks)}")
    if (angles(student) is None) != (angles(teacher) is None):
        having, lacking = ("student", "teacher") if angles(teacher) is None else ("teacher", "student")
        raise ValueError(f"the {having} has rotary positions, the {lacking} has none")
    if student.num_prefix_tokens != teacher.num_prefix_tokens:
        raise ValueError(f"student has {student.num_prefix_tokens} prefix tokens, teacher {teacher.num_prefix_tokens}")
    counts = [0 if vit.pos_embed is None else vit.pos_embed.shape[1] for vit in (student, teacher)]
    if counts[0] != counts[1]:
        raise ValueError(f"student has {counts[0]} position embeddings, teacher {counts[1]}")
    ours, theirs = student.blocks[0].attn, teacher.blocks[0].attn
    if ours.head_dim != theirs.head_dim or ours.num_heads > theirs.num_heads:
        raise ValueError(
            f"student has {ours.num_heads} heads of {ours.head_dim}, teacher {theirs.num_heads} of {theirs.head_dim}"
        )
    if student.embed_dim > teacher.embed_dim or _neurons(student) > _neurons(teacher):
        raise ValueError(
            f"student is {student.embed_dim} wide with {_neurons(student)} neurons a block, teacher "
            f"{teacher.embed_dim} with {_neurons(teacher)}"
        )
    _check_angles(student, teacher)


def _check_angles(student: Any, teacher: Any) -> None:
    ours, theirs = angles(student), angles(teacher)
    if ours is None or theirs is None:
        return
    pairs = [bool(vit.blocks[0].attn.rotate_half) for vit in (student, teacher)]
    if pairs[0] != pairs[1] or ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-4):
        raise ValueError("the student turns queries and keys by other angles than its teacher")


def _unknown_part(vit: Any) -> str | None:
    """What of a network is not of a kind that the fit knows, to complete "the teacher …"; None where nothing is."""
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if type(vit) not in (VisionTransformer, Eva):
        return f"is a {type(vit).__name__} and no plain ViT"
    rotary = getattr(vit, "rope", None) is not None
    if rotary and vit.rope_mixed:
        return "has rotary positions with angles of their own in every head"
    if vit.cls_token is None or (vit.pos_embed is None and not rotary):
        return f"has no {'CLS token' if vit.cls_token is None else 'position embeddings'}"
    if type(vit.patch_embed) is not PatchEmbed or not _is_off(vit.patch_embed.norm):
        return f"has a patch embedding of its own ({type(vit.patch_embed).__name__})"
    if not _is_off(vit.norm_pre) or vit.patch_embed.proj.bias is None:
        return "has a norm before its blocks"
    if not isinstance(vit.norm, nn.LayerNorm) or vit.attn_pool is not None:
        return "does not end in a LayerNorm of its tokens"
    return next((part for part in map(_unknown_part_of_block, vit.blocks) if part is not None), None)


def _unknown_part_of_block(block: Any) -> str | None:
    from timm.layers import Attention, Mlp
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block

    if type(block) not in (Block, EvaBlock):
        return f"has blocks of the kind {type(block).__name__}"
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        return f"has norms of the kind {type(block.norm1).__name__}"
    attention, mlp = block.attn, block.mlp
    if type(attention) not in (Attention, EvaAttention) or attention.qkv is None:
        return f"has attention of the kind {type(attention).__name__}"
    if not (_is_off(attention.q_norm) and _is_off(attention.k_norm)):
        return "norms its queries and keys"
    if not _is_off(getattr(attention, "norm", None)) or getattr(attention, "gate", None) is not None:
        return "norms or gates what its attention gives"
    if type(mlp) is not Mlp and not _is_gated(mlp):
        return f"has MLPs of the kind {type(mlp).__name__}"
    linear = isinstance(mlp.fc2, nn.Linear)
    return None if _is_off(mlp.norm) and linear else "norms inside its MLPs"


def _is_gated(mlp: nn.Module) -> bool:
    from timm.layers import GluMlp, SwiGLU

    return type(mlp) in (GluMlp, SwiGLU)


def _neurons(vit: Any) -> int:
    mlp = vit.blocks[0].mlp
    return int(2 * mlp.fc1_g.out_features if hasattr(mlp, "fc1_g") else mlp.fc1.out_features)


def _is_off(part: nn.Module | None) -> bool:
    return part is None or isinstance(part, nn.Identity)
