"""A twin's weights: its teacher's own where the shape allows, the rest fitted (see `twins.py`)."""

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional

from atlas_edge.distill.training.student import Architecture
from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folding.rotation import rotations
from atlas_edge.models.load import LoadedModel
from atlas_edge.models.timm_config import CONFIG
from atlas_edge.models.timm_folder import with_layers
from atlas_edge.spec import Pooling
from parts.twin_closed_form import CLS_SHARE, PIECE, begin_block, refit_writes

_BATCH = 2
_BLOCK_RATE, _WHOLE_RATE, _WARM_UP = 1e-4, 1e-5, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An architecture.

    Attributes:
        title: For tables.
        architecture: timm architecture.
        arguments: For it, beside what the twin has from its teacher.
        patch: Patch side, pixels; the teacher's when None.
        pooling: How it embeds.
    """

    title: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    patch: int | None = None
    pooling: Pooling = "cls"


_VIT, _DINOV3 = "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"


KINDS: dict[str, Kind] = {
    "swiglu": Kind(
        title="gated MLP",
        architecture=_VIT,
        arguments={"mlp_layer": "SwiGLUPacked", "act_layer": "silu"},
    ),
    "rotary": Kind(
        title="rotary positions, 4 registers",
        architecture=_DINOV3,
        arguments={"num_reg_tokens": 4, "qkv_bias": True, "global_pool": "token"},
    ),
    "qknorm": Kind(title="normalised queries and keys", architecture=_VIT, arguments={"qk_norm": True}),
    # As `atlas2-s --patch 8` is.
    "patch8": Kind(
        title="patch 8, rotary positions, 8 registers",
        architecture=_DINOV3,
        arguments={"num_reg_tokens": 8, "qkv_bias": True, "global_pool": "token"},
        patch=8,
        pooling="cls+mean",
    ),
}


def build_twin(kind: Kind, teacher: LoadedModel) -> tuple[Any, Architecture]:
    """The twin's network with all that it can have of its teacher, and how it is built again.

    Args:
        kind: Its architecture.
        teacher: On the twin's grid of patches.
    """
    spec = teacher.spec
    vit: Any = teacher.module.backbone
    first = vit.blocks[0]
    assert spec.patch is not None
    patch = kind.patch or spec.patch
    arguments = {
        "img_size": spec.tile_px // spec.patch * patch,
        "patch_size": patch,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.fc1.out_features / vit.embed_dim,
        "init_values": 1e-5 if hasattr(first.ls1, "gamma") else None,
        "dynamic_img_size": False,
        **kind.arguments,
    }
    if "mlp_layer" in kind.arguments:
        # As wide as UNI2-h and Virchow2 for their width; timm rounds down.
        arguments["mlp_ratio"] = (2 * round(8 / 3 * vit.embed_dim) + 0.5) / vit.embed_dim
    network: Any = timm.create_model(kind.architecture, num_classes=0, **with_layers(arguments, Path(CONFIG))).eval()
    with torch.no_grad():
        _copy_embedding(network, vit)
        for block, taught in zip(network.blocks, vit.blocks, strict=True):
            _copy_block(block, taught)
        network.norm.load_state_dict(vit.norm.state_dict())
    shape = {"mean": spec.mean, "std": spec.std, "tile_px": arguments["img_size"], "mpp": spec.mpp}
    return network, Architecture(name=kind.architecture, arguments=arguments, **shape)


def fit_twin(twin: EncoderModule, teacher: EncoderModule, own: Tensor, theirs: Tensor, *, steps: int) -> None:
    """Fit block by block, each to make up for the errors of those before it, then end to end.

    Training is kept only where it brings the twin nearer to its teacher than the closed forms did.

    Args:
        twin: From `build_twin`.
        teacher: On the twin's grid of patches.
        own: `(N, H, W, 3)` uint8 tiles at the twin's size.
        theirs: The same at the teacher's.
        steps: End to end; each block takes a third as many.
    """
    network: Any = twin.backbone
    vit: Any = teacher.backbone
    prefix = twin.prefix_tokens
    with torch.no_grad():
        goal = torch.cat([_embedded(vit, teacher.normalise(piece))[0] for piece in theirs.split(PIECE)])
        _take_registers(network, goal)
        parts = [_embedded(network, twin.normalise(piece)) for piece in own.split(PIECE)]
    stream, table = torch.cat([tokens for tokens, _ in parts]), parts[0][1]
    for block, taught, rotation in zip(network.blocks, vit.blocks, rotations(network), strict=True):
        begin_block(block, taught, goal[:PIECE], rotation)
        stream, goal = _fit_block(block, taught, stream, goal, table, prefix, steps=steps // 3)
    with torch.no_grad():
        tokens = vit.norm(goal)
        embeddings = teacher.pool(tokens)
    # Most of an embedding is the same for all tiles: a twin that gives their mean has a high cosine, and no use.
    mean = embeddings.mean(dim=0)

    def loss(rows: Tensor) -> Tensor:
        found = twin.tokens(twin.normalise(own[rows]))
        cosine = functional.cosine_similarity(twin.pool(found) - mean, embeddings[rows] - mean, dim=1)
        return token_error(found, tokens[rows], prefix) + (1 - cosine).mean()

    def error() -> float:
        with torch.no_grad():
            return float(loss(torch.arange(min(2 * PIECE, len(own)))))

    before, begun = error(), copy.deepcopy(network.state_dict())
    _train(network, len(own), steps, _WHOLE_RATE, loss)
    after = error()
    print(f"end to end: {before:.4f} -> {after:.4f}", file=sys.stderr, flush=True)
    if after > before:
        network.load_state_dict(begun)


def token_error(found: Tensor, goal: Tensor, prefix: int) -> Tensor:
    """Squared error of CLS and patches, each token's by its own variance.

    Args:
        found: `(B, prefix + N, D)` with registers, which the teacher has none of.
        goal: `(B, 1 + N, D)`.
        prefix: CLS and registers.
    """
    found = torch.cat([found[:, :1], found[:, prefix:]], dim=1)
    error = (found - goal).square().mean(-1) / goal.var(-1).clamp_min(1e-6)
    return CLS_SHARE * error[:, 0].mean() + (1 - CLS_SHARE) * error[:, 1:].mean()


def _fit_block(
    block: Any, taught: Any, stream: Tensor, goal: Tensor, table: Tensor | None, prefix: int, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Fit one block; returns what it and its teacher's make of their streams."""

    def run(tokens: Tensor) -> Tensor:
        written: Tensor = block(tokens) if table is None else block(tokens, rope=table)
        return written

    def error() -> float:
        with torch.no_grad():
            return float(token_error(run(stream[:PIECE]), written[:PIECE], prefix))

    with torch.no_grad():
        written = torch.cat([taught(piece) for piece in goal.split(PIECE)])
        refit_writes(block, taught, run, stream, goal, written, prefix)
    before, begun = error(), copy.deepcopy(block.state_dict())
    _train(block, len(stream), steps, _BLOCK_RATE, lambda rows: token_error(run(stream[rows]), written[rows], prefix))
    after = error()
    if after > before:
        # The closed form was the better one.
        block.load_state_dict(begun)
    print(f"block: squared error {before:.4f} -> {after:.4f} of the variance", file=sys.stderr, flush=True)
    with torch.no_grad():
        return torch.cat([run(piece) for piece in stream.split(PIECE)]), written


def _copy_embedding(network: Any, vit: Any) -> None:
    kernel, side = vit.patch_embed.proj.weight, list(network.patch_embed.patch_size)
    network.patch_embed.proj.weight.copy_(
        kernel if list(kernel.shape[-2:]) == side else resample_patch_embed(kernel, side)
    )
    network.patch_embed.proj.bias.copy_(vit.patch_embed.proj.bias)
    network.cls_token.copy_(vit.cls_token)
    if network.pos_embed is not None:
        network.pos_embed.copy_(vit.pos_embed)
    else:  # what all places have in common
        network.cls_token.add_(vit.pos_embed[:, :1])
        network.patch_embed.proj.bias.add_(vit.pos_embed[0, 1:].mean(dim=0))


def _take_registers(network: Any, tokens: Tensor) -> None:
    """Registers begin as patches of tissue: nothing that the blocks have never seen."""
    if network.reg_token is not None:
        patches = tokens[:, 1:].flatten(0, 1)
        rows = torch.linspace(0, len(patches) - 1, network.reg_token.shape[1]).long()
        network.reg_token.data.copy_(patches[rows])


def _copy_block(block: Any, taught: Any) -> None:
    state = taught.state_dict()
    width = taught.attn.proj.out_features
    if hasattr(block, "gamma_1"):  # timm's Eva
        state |= {"attn.q_bias": state["attn.qkv.bias"][:width], "attn.v_bias": state["attn.qkv.bias"][-width:]}
        state |= {f"gamma_{place}": state.get(f"ls{place}.gamma") for place in (1, 2)}
    own = block.state_dict()
    fitting = {
        name: state[name] for name in own if state.get(name) is not None and state[name].shape == own[name].shape
    }
    block.load_state_dict(fitting, strict=False)


def _embedded(network: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens that the first block reads, and the table of a rotation."""
    found = network._pos_embed(network.patch_embed(images))
    tokens, table = found if isinstance(found, tuple) else (found, None)
    return network.norm_pre(tokens), table


def _train(module: nn.Module, tiles: int, steps: int, rate: float, loss: Callable[[Tensor], Tensor]) -> None:
    """Adam with warm-up and a cosine, on two tiles a step; their order is PyTorch's own draw."""
    if not steps:
        return
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / (_WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    order = torch.cat([torch.randperm(tiles) for _ in range(-(-_BATCH * steps // tiles))])
    for rows in order[: _BATCH * steps].split(_BATCH):
        optimizer.zero_grad()
        loss(rows).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
