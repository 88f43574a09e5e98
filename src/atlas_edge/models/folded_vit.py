"""A vision transformer rewritten for deployment: the same function at full precision, with less to compute.

Everything that is constant is folded into the products beside it, so that between two of them only what depends on the
tile is left:

- pixel normalisation into the patch embedding, which then reads the pixels themselves: 256 levels, exact in uint8;
- the patch embedding's bias into the position embedding;
- LayerNorm's weight and bias into the query, key, value and first MLP products that read it;
- the attention's scale into the query, and LayerScale into the projection and the second MLP product;
- where only the CLS token is the embedding, the last block computes its query, projection and MLP for that token alone
  (the keys and values still come from all), which saves 7 % of a ViT-S.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_edge.models.encoder_module import TOKEN_POOLINGS, EncoderModule


def fold_vit(module: nn.Module) -> "FoldedVit | None":
    """Rewrite a timm vision transformer; `module` stays as it is.

    Args:
        module: An `EncoderModule` around a timm `VisionTransformer`.

    Returns:
        The folded network, or None where the backbone has a part that folding does not know (rotary positions, gated
        MLPs, convolutional networks, ...).
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    # Exact types: a subclass may pool, embed or compute in its own way.
    if not isinstance(module, EncoderModule) or type(module.backbone) is not VisionTransformer:
        return None
    backbone = module.backbone
    plain = (
        module.pooling in TOKEN_POOLINGS
        and type(backbone.patch_embed) is PatchEmbed
        and _absent(backbone.patch_embed.norm, backbone.norm_pre)
        and not backbone.patch_embed.dynamic_img_pad
        and not backbone.dynamic_img_size
        and getattr(backbone, "pos_embed", None) is not None
        and _absent(backbone.norm) is not _absent(backbone.fc_norm)
        and isinstance(_last_norm(backbone), nn.LayerNorm)
        and all(type(block) is Block and _foldable(block) for block in backbone.blocks)
    )
    return FoldedVit(module).eval() if plain else None


class FoldedVit(nn.Module):
    """See `fold_vit`. Linear layers keep timm's names, with `qkv` as three: `blocks.0.attn.q`, `.k`, `.v`."""

    prefix: Tensor
    positions: Tensor

    def __init__(self, module: EncoderModule) -> None:
        super().__init__()
        backbone: Any = module.backbone
        self.pooling = module.pooling
        # Tokens that the mean leaves out.
        averages_all = module.own_pooling and backbone.pool_include_prefix
        self.prefix_tokens = 0 if averages_all else module.prefix_tokens
        self.norm_after_pooling = not _absent(backbone.fc_norm)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = _pixel_convolution(backbone.patch_embed.proj, module)
        prefix, positions = _positions(backbone)
        self.register_buffer("prefix", prefix)
        self.register_buffer("positions", positions + _pixel_offset(backbone.patch_embed.proj, module))
        last = len(backbone.blocks) - 1
        cls_only = module.pooling == "cls"
        self.blocks = nn.ModuleList(
            FoldedBlock(block, cls_only=cls_only and index == last) for index, block in enumerate(backbone.blocks)
        )
        self.norm = copy.deepcopy(_last_norm(backbone))

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed `(B, H, W, 3)` uint8 tiles as `(B, D)` float32."""
        tokens = self.embed_patches(tiles)
        for block in self.blocks:
            tokens = block(tokens)
        cls = self.norm(tokens[:, 0])
        if self.pooling == "cls":
            return cls
        patches = tokens[:, self.prefix_tokens :]
        mean = self.norm(patches.mean(dim=1)) if self.norm_after_pooling else self.norm(patches).mean(dim=1)
        return mean if self.pooling == "avg" else torch.cat([cls, mean], dim=1)

    def embed_patches(self, tiles: Tensor) -> Tensor:
        """`(B, H, W, 3)` uint8 -> tokens `(B, prefix + N, D)` that the first block reads."""
        # The cast comes before the transpose: TensorRT refuses a uint8 Transpose.
        patches = self.patch_embed.proj(tiles.float().permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(tiles.shape[0], -1, -1), patches + self.positions], dim=1)


class FoldedBlock(nn.Module):
    """One transformer block after folding; with `cls_only`, `(B, N, D)` in and `(B, 1, D)` out."""

    def __init__(self, block: Any, *, cls_only: bool) -> None:
        super().__init__()
        self.cls_only = cls_only
        self.attn = FoldedAttention(block)
        self.mlp = nn.Module()
        self.mlp.fc1 = _after_norm(block.mlp.fc1.weight, block.mlp.fc1.bias, block.norm2)
        self.mlp.fc2 = _scaled(block.mlp.fc2, block.ls2)
        self.width = block.norm1.normalized_shape
        self.eps1, self.eps2 = block.norm1.eps, block.norm2.eps

    def forward(self, tokens: Tensor) -> Tensor:
        """Attention and MLP, each added to the tokens."""
        normed = functional.layer_norm(tokens, self.width, eps=self.eps1)
        queried, tokens = (normed[:, :1], tokens[:, :1]) if self.cls_only else (normed, tokens)
        tokens = tokens + self.attn(queried, normed)
        hidden = self.mlp.fc1(functional.layer_norm(tokens, self.width, eps=self.eps2))
        mixed: Tensor = tokens + self.mlp.fc2(functional.gelu(hidden))
        return mixed


class FoldedAttention(nn.Module):
    """Attention with separate query, key and value, the scale folded into the query."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        weight = attention.qkv.weight.detach()
        bias = torch.zeros(len(weight)) if attention.qkv.bias is None else attention.qkv.bias.detach()
        parts = zip(weight.chunk(3), bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_after_norm(w, b, block.norm1) for w, b in parts)
        self.normed = not _absent(attention.q_norm, attention.k_norm)
        self.q_norm, self.k_norm = copy.deepcopy(attention.q_norm), copy.deepcopy(attention.k_norm)
        self.scale = float(attention.scale)
        if not self.normed:
            self.q.weight.data *= attention.scale
            self.q.bias.data *= attention.scale
        self.proj = _scaled(attention.proj, block.ls1)

    def forward(self, queried: Tensor, tokens: Tensor) -> Tensor:
        """Attention of `queried` `(B, M, D)` over `tokens` `(B, N, D)`, both normalised: `(B, M, D)`."""
        projected: Tensor = self.proj(self.attend(queried, tokens))
        return projected

    def attend(self, queried: Tensor, tokens: Tensor) -> Tensor:
        """The same before the projection: `(B, M, num_heads * head_dim)`."""
        query, key, value = self._heads(self.q(queried)), self._heads(self.k(tokens)), self._heads(self.v(tokens))
        query, key = self.q_norm(query), self.k_norm(key)
        if self.normed:
            query = query * self.scale
        attended = (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        return attended.transpose(1, 2).flatten(2)

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        return tokens.reshape(batch, count, self.num_heads, self.head_dim).transpose(1, 2)


def _absent(*parts: nn.Module) -> bool:
    return all(isinstance(part, nn.Identity) for part in parts)


def _last_norm(backbone: Any) -> nn.Module:
    norm: nn.Module = backbone.fc_norm if _absent(backbone.norm) else backbone.norm
    return norm


def _foldable(block: Any) -> bool:
    from timm.layers import LayerScale, Mlp
    from timm.layers.attention import Attention

    attention, mlp = block.attn, block.mlp
    return (
        type(attention) is Attention
        and getattr(attention, "gate", None) is None
        and _absent(attention.norm)
        and type(mlp) is Mlp
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and _absent(mlp.norm)
        and isinstance(mlp.fc1, nn.Linear)
        and all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2))
        and all(isinstance(scale, LayerScale | nn.Identity) for scale in (block.ls1, block.ls2))
    )


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
    """What stands before the patches, `(1, prefix, D)`, and what is added to them, `(1, N, D)`."""
    tokens = [token.detach() for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    width = backbone.pos_embed.shape[-1]
    prefix = torch.cat(tokens, dim=1) if tokens else torch.zeros(1, 0, width)
    positions = backbone.pos_embed.detach().clone()
    if backbone.no_embed_class:
        return prefix, positions
    count = prefix.shape[1]
    return prefix + positions[:, :count], positions[:, count:].clone()


def _after_norm(weight: Tensor, bias: Tensor | None, norm: nn.LayerNorm) -> nn.Linear:
    """The product that reads the bare normalised tokens: `W diag(g)`, `b + W beta`."""
    weight = weight.detach()
    bias = torch.zeros(len(weight)) if bias is None else bias.detach()
    scale = torch.ones(weight.shape[1]) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros(weight.shape[1]) if norm.bias is None else norm.bias.detach()
    return _linear(weight * scale, bias + weight @ shift)


def _scaled(linear: nn.Linear, scale: nn.Module) -> nn.Linear:
    gamma = getattr(scale, "gamma", None)
    weight = linear.weight.detach()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()
    return _linear(weight, bias) if gamma is None else _linear(weight * gamma.detach()[:, None], bias * gamma.detach())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
    return linear
