"""A whole folded vision transformer."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folding.block import FoldedBlock
from atlas_edge.models.folding.known import unfoldable_part
from atlas_edge.models.folding.linear import with_affine
from atlas_edge.models.folding.merging import Stream, mean_of
from atlas_edge.models.folding.rotation import rotations


def fold_vit(module: nn.Module) -> "FoldedVit | None":
    """Rewrite a timm vision transformer; `module` stays as it is.

    Args:
        module: An `EncoderModule` around a timm `VisionTransformer` or `Eva`.

    Returns:
        The folded network, or None where the backbone has a part that folding does not know (`unfoldable_part`).
    """
    pieces = fold_in_pieces(module)
    if pieces is None:
        return None
    folded, blocks = pieces
    folded.blocks.extend(blocks)
    return folded


def fold_in_pieces(module: nn.Module) -> "tuple[FoldedVit, Iterator[FoldedBlock]] | None":
    """The same without its blocks, and each block when it is asked for: all of them take the network's memory again."""
    if not isinstance(module, EncoderModule) or unfoldable_part(module) is not None:
        return None
    return FoldedVit(module).eval(), _blocks(module)


class FoldedVit(nn.Module):
    """See `fold_vit`; its blocks are added after.

    Linear layers keep timm's names, with `qkv` as three, `blocks.0.attn.q`, `.k`, `.v`, and the first of a gated MLP as
    two, `blocks.0.mlp.fc1_g`, `.fc1_x`.

    Attributes:
        prefix: `(1, prefix, D)` tokens before the patches.
        positions: `(1, N, D)` that is added to the patches.
        mean: `(1, 3, 1, 1)` of pixels on the 0-255 scale; folded away, for who must keep it apart.
        scale: `(1, 3, 1, 1)` that centred pixels are multiplied by; likewise.
        pooled_from: The first token that the mean takes in.
        gives_tokens: Whether the patch tokens are an output, too; all blocks then compute all tokens.
        token_count: Patches of a tile.
        grid: Their rows and columns.
        order: `(patches,)` the order of the patches behind the prefix; None row by row.
    """

    prefix: Tensor
    positions: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, module: EncoderModule) -> None:
        super().__init__()
        backbone: Any = module.backbone
        self.pooling = module.pooling
        averages_all = module.own_pooling and getattr(backbone, "pool_include_prefix", False)
        self.pooled_from = 0 if averages_all else module.prefix_tokens
        self.patch_embed = nn.Module()
        self.patch_embed.proj = _pixel_convolution(backbone.patch_embed.proj, module)
        self.norm_pre, self.norm, self.fc_norm = (
            with_affine(norm) if isinstance(norm, nn.LayerNorm) else None
            for norm in (backbone.norm_pre, backbone.norm, backbone.fc_norm)
        )
        prefix, positions = _positions(backbone)
        self.register_buffer("prefix", (prefix if self.norm_pre is None else self.norm_pre(prefix)).detach())
        self.register_buffer("mean", module.mean)
        self.register_buffer("scale", module.scale)
        self.register_buffer("positions", positions + _pixel_offset(backbone.patch_embed.proj, module))
        self.gives_tokens = module.gives_tokens
        rows, columns = backbone.patch_embed.grid_size
        self.token_count, self.grid = rows * columns, (int(rows), int(columns))
        self.order: Tensor | None = None
        self.blocks = nn.ModuleList()

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed `(B, H, W, 3)` uint8 tiles as `(B, D)` float32."""
        return self._pool(self._stream(tiles))

    def forward_with_tokens(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """The same beside patch tokens `(B, N, C)`, where it `gives_tokens`."""
        stream = self._stream(tiles)
        return self._pool(stream), stream.tokens[:, self.prefix.shape[1] :]

    def _stream(self, tiles: Tensor) -> Stream:
        stream = Stream(self.embed_patches(tiles))
        for block in self.blocks:
            stream = block(stream)
        return stream if self.norm is None else replace(stream, tokens=self.norm(stream.tokens))

    def _pool(self, stream: Stream) -> Tensor:
        parts = [] if self.pooling == "avg" else [stream.tokens[:, 0]]
        if self.pooling != "cls":
            parts.append(mean_of(stream, self.pooled_from))
        return torch.cat([part if self.fc_norm is None else self.fc_norm(part) for part in parts], dim=1)

    def embed_patches(self, tiles: Tensor) -> Tensor:
        """`(B, H, W, 3)` uint8 -> tokens `(B, prefix + N, D)` that the first block reads."""
        # The cast comes before the transpose: TensorRT refuses a uint8 Transpose.
        patches = self.patch_embed.proj(tiles.float().permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        patches = patches + self.positions
        if self.norm_pre is not None:
            patches = self.norm_pre(patches)
        if self.order is not None:
            patches = patches[:, self.order]
        return torch.cat([self.prefix.expand(tiles.shape[0], -1, -1), patches], dim=1)


def _blocks(module: EncoderModule) -> Iterator[FoldedBlock]:
    backbone: Any = module.backbone
    last, cls_only = len(backbone.blocks) - 1, module.pooling == "cls" and not module.gives_tokens
    for index, (block, rotation) in enumerate(zip(backbone.blocks, rotations(backbone), strict=True)):
        yield FoldedBlock(
            block,
            rotation,
            cls_only=cls_only and index == last,
            prefix=backbone.num_prefix_tokens,
            asks_cls=module.pooling != "avg",
        ).eval()


def _pixel_convolution(proj: nn.Conv2d, module: EncoderModule) -> nn.Conv2d:
    folded = copy.deepcopy(proj)
    folded.weight.data = proj.weight.detach() * module.scale
    folded.bias = None
    return folded


def _pixel_offset(proj: nn.Conv2d, module: EncoderModule) -> Tensor:
    """What mean pixel and bias add to every patch, `(1, 1, D)`; patches are not padded, so it is the same for all."""
    offset = -(proj.weight.detach() * (module.mean * module.scale)).sum(dim=(1, 2, 3))
    return (offset if proj.bias is None else offset + proj.bias.detach()).view(1, 1, -1)


def _positions(backbone: Any) -> tuple[Tensor, Tensor]:
    """What stands before the patches, `(1, prefix, D)`, and what is added to them, `(1, N or 1, D)`."""
    tokens = [token.detach() for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    width = backbone.embed_dim
    prefix = torch.cat(tokens, dim=1) if tokens else torch.zeros(1, 0, width)
    if backbone.pos_embed is None:
        return prefix, torch.zeros(1, 1, width)
    positions = backbone.pos_embed.detach().clone()
    if backbone.no_embed_class:
        return prefix, positions
    count = prefix.shape[1]
    return prefix + positions[:, :count], positions[:, count:].clone()
