"""What of a twin's block follows in closed form from its teacher's (see `twins.py`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_edge.models.folding.rotation import Rotation

# CLS tokens carry this share of a fit: there is one for some 250 patches.
CLS_SHARE = 0.1
PIECE = 8
# GELU is close to x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016, arXiv:1606.08415).
_GELU_SLOPE = 1.702
# Deviation of the value half around the constant with which SwiGLU is a GELU, by that constant.
_VALUE_SPREAD = 0.3
_RIDGE = 1e-3
# Of what a block writes: a CLS token counts as so many patches, and weights are held to what they were. With more of
# the one and less of the other, the few CLS tokens of a fit are met exactly, and those of other tiles are not.
_CLS_ROWS, _HOLD = 4.0, 1e-2
_FIT_TOKENS = 4096


def begin_block(block: Any, taught: Any, tokens: Tensor, rotation: Rotation | None) -> None:
    """The closed forms.

    Args:
        block: The twin's.
        taught: Its teacher's.
        tokens: `(B, N, D)` that the latter reads.
        rotation: Of the twin's queries and keys.
    """
    with torch.no_grad():
        read = _inputs(taught, tokens)
        if rotation is not None:
            # What matters most goes where positions turn it least.
            places = rotation.order[(1 - rotation.cos).mean(dim=(0, 1)).argsort()]
            _turn_heads(block.attn, read[taught.attn], torch.eye(len(places))[:, places])
        elif isinstance(block.attn.q_norm, nn.LayerNorm):
            # What matters least goes into the mean, which the norm takes off.
            count = block.attn.head_dim
            basis = torch.linalg.qr(torch.cat([torch.ones(count, 1), torch.eye(count)[:, 1:]], dim=1))[0]
            for norm, heads in zip(
                (block.attn.q_norm, block.attn.k_norm),
                _turn_heads(block.attn, read[taught.attn], basis.roll(-1, dims=1)),
                strict=True,
            ):
                norm.weight.fill_(float(heads.std(dim=-1).mean()))
        if type(block.mlp) is not type(taught.mlp):
            _gate_mlp(block.mlp, taught.mlp, read[taught.mlp].flatten(0, 1))


def refit_writes(
    block: Any, taught: Any, run: Callable[[Tensor], Tensor], stream: Tensor, goal: Tensor, written: Tensor, prefix: int
) -> None:
    """What attention and MLP write, fitted by least squares to where the teacher's stream is after each.

    Each channel has a fit of its own, so that those with massive activations do not speak for all; and what the twin's
    earlier blocks missed is part of what is wanted.
    """
    attended = torch.cat([piece + _scaled(taught, 1, taught.attn(taught.norm1(piece))) for piece in goal.split(PIECE)])
    for number, layer, aim in ((1, block.attn.proj, attended), (2, block.mlp.fc2, written)):
        found: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, given, found=found: found.append(given[0]))
        entering: list[Tensor] = []
        other = block.norm2.register_forward_pre_hook(lambda _, given, seen=entering: seen.append(given[0]))
        for piece in stream.split(PIECE):
            run(piece)
        handle.remove()
        other.remove()
        before = stream if number == 1 else torch.cat(entering)
        missing = aim - torch.cat([before[:, :1], before[:, prefix:]], dim=1)
        read = torch.cat(found)
        read = torch.cat([read[:, :1], read[:, prefix:]], dim=1)
        gamma = _gamma(block, number)
        _solve(layer, read, missing if gamma is None else missing / gamma)


def _solve(layer: nn.Linear, read: Tensor, wanted: Tensor) -> None:
    """Least squares, held to the weights that are there."""
    share = torch.ones(read.shape[1], 1)
    share[0] = _CLS_ROWS
    root = share.sqrt().expand(len(read), -1, 1).reshape(-1, 1)
    rows = torch.cat([read, torch.ones_like(read[..., :1])], dim=-1).flatten(0, 1) * root
    missed = (wanted - layer(read)).flatten(0, 1) * root
    gram = (rows.T @ rows).double()
    gram += _HOLD * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    step = torch.linalg.solve(gram, (rows.T @ missed).double()).float()
    layer.weight.add_(step[:-1].T)
    layer.bias.add_(step[-1])


def _gamma(block: Any, number: int) -> Tensor | None:
    """LayerScale of attention (1) or MLP (2)."""
    if hasattr(block, f"gamma_{number}"):
        found: Tensor | None = getattr(block, f"gamma_{number}")
    else:
        found = getattr(getattr(block, f"ls{number}"), "gamma", None)
    return found


def _scaled(block: Any, number: int, values: Tensor) -> Tensor:
    gamma = _gamma(block, number)
    return values if gamma is None else values * gamma


def _inputs(taught: Any, tokens: Tensor) -> dict[nn.Module, Tensor]:
    """What attention and MLP of a block read."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: Any) -> None:
        found[module] = inputs[0]

    hooks = [part.register_forward_pre_hook(keep) for part in (taught.attn, taught.mlp)]
    taught(tokens)
    for hook in hooks:
        hook.remove()
    return found


def _turn_heads(attention: Any, read: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each head's queries and keys alike, which no product of the two sees.

    Args:
        attention: With `qkv`; changed in place.
        read: `(B, N, D)` that it reads.
        frame: `(head_dim, head_dim)` orthogonal: its first column gets the direction with the most energy.

    Returns:
        Queries and keys `(B, N, heads, head_dim)` afterwards.
    """
    weight, width = attention.qkv.weight, attention.proj.in_features
    bias = attention.qkv.bias
    if bias is None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    query, key = (
        functional.linear(read, weight[at : at + width], bias[at : at + width]).unflatten(-1, (attention.num_heads, -1))
        for at in (0, width)
    )
    energy = sum(
        torch.einsum("bnhi,bnhj->hij", heads, heads) / heads.square().sum(dim=(0, 1, 3)).view(-1, 1, 1)
        for heads in (query, key)
    )
    turn = frame @ torch.linalg.eigh(energy)[1].flip(-1).transpose(1, 2)
    for at in (0, width):
        rows = slice(at, at + width)
        heads = weight[rows].unflatten(0, (attention.num_heads, -1))
        weight[rows] = (turn @ heads).flatten(0, 1)
        bias[rows] = torch.einsum("hij,hj->hi", turn, bias[rows].view(attention.num_heads, -1)).flatten()
    if attention.qkv.bias is None:
        attention.q_bias.copy_(bias[:width])
    turned = [torch.einsum("hij,bnhj->bnhi", turn, heads) for heads in (query, key)]
    return turned[0], turned[1]


def _gate_mlp(mlp: Any, taught: Any, read: Tensor) -> None:
    """SwiGLU from a GELU MLP: `silu(1.702 a) / 1.702` is nearly `gelu(a)`.

    Gates are the neurons that write most. Values vary around the constant by the neurons for which no gate was left,
    so that both halves are alive; `fc2` is fitted anew.

    Args:
        mlp: `GluMlp` with the gate first; changed in place.
        taught: `Mlp`.
        read: `(tokens, D)`.
    """
    read = read[:: -(-len(read) // _FIT_TOKENS)]
    before = taught.fc1(read)
    hidden = taught.act(before)
    order = (hidden.std(dim=0) * taught.fc2.weight.norm(dim=0)).argsort(descending=True)
    count = mlp.fc2.in_features
    gates, values = order[:count], order[(count + torch.arange(count)) % len(order)]
    spread = _VALUE_SPREAD / _GELU_SLOPE / before.std(dim=0)[values]
    for name, unit in (("weight", 1), ("bias", 0)):
        first = getattr(taught.fc1, name)
        gate, value = _GELU_SLOPE * first[gates], spread.view(-1, *[1] * unit) * first[values]
        getattr(mlp.fc1, name).copy_(torch.cat([gate, value]))
    mlp.fc1.bias[count:] += 1 / _GELU_SLOPE - spread * before.mean(dim=0)[values]
    active = mlp.act(mlp.fc1(read)[:, :count]) * mlp.fc1(read)[:, count:]
    rows = torch.cat([active, torch.ones(len(active), 1)], dim=1).double()
    gram = rows.T @ rows
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram, rows.T @ taught.fc2(hidden).double()).float()
    mlp.fc2.weight.copy_(solution[:-1].T)
    mlp.fc2.bias.copy_(solution[-1])
