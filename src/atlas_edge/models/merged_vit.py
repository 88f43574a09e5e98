"""A timm vision transformer that merges tokens, layer for layer as it stands: what graphs with Q/DQ are traced from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folding.merging import Stream, checkerboard, mean_of, merge, merge_schedule
from atlas_edge.models.folding.vit import fold_vit


def merged_vit(encoder: EncoderModule, layers: EncoderModule, factor: float) -> "MergedVit | None":
    """Let an encoder merge tokens until its blocks have `factor` times less to compute.

    Args:
        encoder: In full precision; says how many tokens are merged in each block.
        layers: The same with layers that were quantized, or `encoder` itself; unchanged, and shared with the result.
        factor: 1 merges nothing.

    Returns:
        The network, or None where `encoder` has a part that is not known (`unfoldable_part`).

    Raises:
        UsageError: So many tokens are not there, or patch tokens are an output.
    """
    folded = fold_vit(encoder)
    if folded is None:
        return None
    return MergedVit(layers, {} if factor == 1 else merge_schedule(folded, factor))


def summaries_of(tokens: Tensor, prefix: int) -> Tensor:
    """What `MergedVit.summaries` gives, of tokens `(B, N, D)` before any merging; without a prefix the mean twice."""
    mean = tokens[:, prefix:].mean(dim=1)
    return torch.stack([tokens[:, 0] if prefix else mean, mean], dim=1)


class MergedVit(nn.Module):
    """What `folding.merging.with_merging` makes of a folded network, of one that is not folded.

    Attributes:
        backbone: timm's own modules, by timm's own names.
        schedule: Block -> how many tokens it merges.
    """

    def __init__(self, module: EncoderModule, schedule: Mapping[int, int]) -> None:
        super().__init__()
        self.schedule = dict(schedule)
        backbone: Any = module.backbone
        self.backbone, self.pooling, self.normalise = backbone, module.pooling, module.normalise
        averages_all = module.own_pooling and getattr(backbone, "pool_include_prefix", False)
        self.pooled_from = 0 if averages_all else module.prefix_tokens
        self.prefix = int(backbone.num_prefix_tokens)
        still = torch.arange(self.prefix)
        order = torch.cat([still, self.prefix + checkerboard(*backbone.patch_embed.grid_size)])
        self.register_buffer("order", order, persistent=False)
        self.tables = [None if table is None else table[:, order] for table in _tables(backbone, self.prefix)]

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed `(B, H, W, 3)` uint8 tiles as `(B, D)` float32."""
        return self._pool(self._stream(tiles)).float()

    def summaries(self, tiles: Tensor) -> Tensor:
        """The first token and the mean of the patches they stand for, `(B, 2, D)`; see `summaries_of`."""
        stream = self._stream(tiles)
        mean = mean_of(stream, self.prefix)
        return torch.stack([stream.tokens[:, 0] if self.prefix else mean, mean], dim=1)

    def _stream(self, tiles: Tensor) -> Stream:
        backbone: Any = self.backbone
        placed = backbone._pos_embed(backbone.patch_embed(self.normalise(tiles)))
        tokens = backbone.norm_pre(placed[0] if isinstance(placed, tuple) else placed)
        stream = Stream(tokens[:, self.order])
        for index, block in enumerate(backbone.blocks):
            stream = self._through(block, stream, self.tables[index], self.schedule.get(index, 0))
        return replace(stream, tokens=backbone.norm(stream.tokens))

    def _through(self, block: Any, stream: Stream, table: Tensor | None, count: int) -> Stream:
        attended, weights = _attention(block.attn, block.norm1(stream.tokens), stream, table)
        stream = replace(stream, tokens=stream.tokens + _scaled(block, 1, attended))
        if count:
            stream = merge(stream, None if self.pooling == "avg" else weights.mean(dim=1)[:, 0], count, self.prefix)
        return replace(stream, tokens=stream.tokens + _scaled(block, 2, block.mlp(block.norm2(stream.tokens))))

    def _pool(self, stream: Stream) -> Tensor:
        parts = [] if self.pooling == "avg" else [stream.tokens[:, 0]]
        if self.pooling != "cls":
            parts.append(mean_of(stream, self.pooled_from))
        backbone: Any = self.backbone
        return torch.cat([backbone.fc_norm(part) for part in parts], dim=1)


def _attention(attention: Any, normed: Tensor, stream: Stream, table: Tensor | None) -> tuple[Tensor, Tensor]:
    """What attention adds, `(B, N, D)`, and its weights, `(B, heads, N, N)`."""
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    batch, count, _ = normed.shape
    if attention.qkv is None:
        parts = [layer(normed) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    else:
        together = attention.qkv(normed)
        if getattr(attention, "q_bias", None) is not None:
            together = together + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        parts = list(together.chunk(3, dim=-1))
    query, key, value = (part.reshape(batch, count, attention.num_heads, -1).transpose(1, 2) for part in parts)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if table is not None:
        # (heads or 1, N, 2 * head_dim) -> (B or 1, heads or 1, N, 2 * head_dim)
        turns = table[None] if stream.places is None else table[:, stream.places].transpose(0, 1)
        half = bool(getattr(attention, "rotate_half", False))
        query, key = (apply_rot_embed_cat(heads, turns, half=half) for heads in (query, key))
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    if stream.sizes is not None:
        scores = scores + stream.sizes.log()[:, None, None]
    weights = scores.softmax(dim=-1)
    attended = (weights @ value).transpose(1, 2).flatten(2)
    return attention.proj(attention.norm(attended)), weights


def _scaled(block: Any, branch: int, values: Tensor) -> Tensor:
    """By LayerScale: a module in timm's `Block`, a parameter or nothing in its `EvaBlock`."""
    if hasattr(block, "ls1"):
        scaled: Tensor = getattr(block, f"ls{branch}")(values)
        return scaled
    gamma = getattr(block, f"gamma_{branch}")
    return values if gamma is None else gamma * values


def _tables(backbone: Any, prefix: int) -> list[Tensor | None]:
    """Sines, then cosines by which each block turns its tokens, `(heads or 1, N, 2 * head_dim)`; the prefix by none."""
    embedding = getattr(backbone, "rope", None)
    if embedding is None:
        return [None] * len(backbone.blocks)
    found = embedding.get_embed(shape=list(backbone.patch_embed.grid_size)).detach().float()
    tables = list(found) if backbone.rope_mixed else [found[None]] * len(backbone.blocks)
    width = found.shape[-1] // 2
    still = torch.cat([torch.zeros(prefix, width), torch.ones(prefix, width)], dim=1)
    return [torch.cat([still.expand(len(table), -1, -1), table], dim=1) for table in tables]
