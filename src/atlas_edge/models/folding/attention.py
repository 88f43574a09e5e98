"""The attention of a folded block, and what of it may be changed without changing what it computes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_edge.models.folding.linear import after_norm, bias_of, norm_parameters, scaled, standardise
from atlas_edge.models.folding.merging import Stream
from atlas_edge.models.folding.rotation import Rotation


class HeadNorm(nn.Module):
    """The norm of every query or key, head by head.

    Attributes:
        centred: LayerNorm, which takes the mean off; RMSNorm otherwise.
        eps: Added to the variance.
        weight: `(heads, 1, head_dim)`, the attention's scale inside where it is the query's.
        bias: Likewise.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: Any, num_heads: int, head_dim: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.centred, self.eps = isinstance(norm, nn.LayerNorm), float(norm.eps)
        for name, values in zip(("weight", "bias"), norm_parameters(norm, head_dim), strict=True):
            self.register_buffer(name, (scale * values).repeat(num_heads, 1, 1))

    def forward(self, heads: Tensor) -> Tensor:
        """`(B, heads, N, head_dim)`."""
        bare = (functional.layer_norm if self.centred else functional.rms_norm)(heads, heads.shape[-1:], eps=self.eps)
        return bare * self.weight + self.bias


class FoldedAttention(nn.Module):
    """Attention with separate query, key and value; `query` and `key` mark what is multiplied with each other."""

    def __init__(self, attention: Any, norm: nn.LayerNorm, gamma: Tensor | None, rotation: Rotation | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.proj.in_features // attention.num_heads
        self.q, self.k, self.v = (after_norm(weight, bias, norm) for weight, bias in _separate(attention))
        self.query, self.key = nn.Identity(), nn.Identity()
        self.rotation = rotation
        self.q_norm: HeadNorm | None = None
        self.k_norm: HeadNorm | None = None
        scale = float(attention.scale)
        if isinstance(attention.q_norm, nn.Identity):
            self.q.weight.data *= scale
            self.q.bias.data *= scale
        else:
            self.q_norm = HeadNorm(attention.q_norm, self.num_heads, self.head_dim, scale=scale)
            self.k_norm = HeadNorm(attention.k_norm, self.num_heads, self.head_dim)
            if rotation is None:
                # It adds the same to all scores of a query, and softmax does not see it.
                self.k_norm.bias.zero_()
        # EVA-CLIP standardises what the projection reads.
        self.inner_eps: float | None = None if isinstance(attention.norm, nn.Identity) else attention.norm.eps
        projection = attention.proj
        if self.inner_eps is not None:
            projection = after_norm(projection.weight, projection.bias, attention.norm)
        self.proj = scaled(projection, gamma)
        if rotation is not None:
            self._reorder(rotation.order)

    @property
    def shifts_keys(self) -> bool:
        """Whether a constant can be taken from every key: softmax does not see it where all tokens get the same."""
        return self.k_norm is None and self.rotation is None

    @property
    def shifts_values(self) -> bool:
        """Whether a constant can be taken from every value, and be given back by the projection's bias."""
        return self.inner_eps is None

    def forward(self, queried: Tensor, tokens: Tensor, stream: Stream | None = None) -> Tensor:
        """Attention of `queried` `(B, M, D)` over `tokens` `(B, N, D)`, both normalised: `(B, M, D)`.

        Sizes and places of the tokens are those of `stream`, where any were merged; `queried` are the first of them.
        """
        projected: Tensor = self.proj(self.attend(queried, tokens, stream))
        return projected

    def attend(self, queried: Tensor, tokens: Tensor, stream: Stream | None = None) -> Tensor:
        """The same before the projection: `(B, M, num_heads * head_dim)`."""
        query, key, value = self._heads(self.q(queried)), self._heads(self.k(tokens)), self._heads(self.v(tokens))
        query, key = self._turned(query, self.q_norm, stream), self._turned(key, self.k_norm, stream)
        attended = self._weights(self.query(query), self.key(key), stream) @ value
        return standardise(attended.transpose(1, 2).flatten(2), self.inner_eps)

    def of_cls(self, tokens: Tensor, stream: Stream) -> Tensor:
        """The attention `(B, N)` that the first token pays to each, `(B, N, D)` normalised, mean over the heads."""
        # Not through the modules themselves: who watches what they read and give would see tokens twice.
        query = self._heads(functional.linear(tokens[:, :1], self.q.weight, self.q.bias))
        key = self._heads(functional.linear(tokens, self.k.weight, self.k.bias))
        query, key = self._turned(query, self.q_norm, stream), self._turned(key, self.k_norm, stream)
        return self._weights(query, key, stream).mean(dim=1)[:, 0]

    def _turned(self, heads: Tensor, norm: "HeadNorm | None", stream: Stream | None) -> Tensor:
        heads = heads if norm is None else norm(heads)
        if self.rotation is None:
            return heads
        places = None if stream is None or stream.places is None else stream.places[:, : heads.shape[2]]
        turned: Tensor = self.rotation(heads, places)
        return turned

    @staticmethod
    def _weights(query: Tensor, key: Tensor, stream: Stream | None) -> Tensor:
        scores = query @ key.transpose(-2, -1)
        if stream is not None and stream.sizes is not None:
            scores = scores + stream.sizes.log()[:, None, None]
        return scores.softmax(dim=-1)

    def shift_keys(self, offset: Tensor) -> None:
        """Take `(heads * head_dim,)` from every key; see `shifts_keys`."""
        self.k.bias.data -= offset

    def shift_values(self, offset: Tensor) -> None:
        """Take `(heads * head_dim,)` from every value: attention weights sum to one, so it passes to the projection."""
        self.v.bias.data -= offset
        self.proj.bias.data += self.proj.weight @ offset

    def together(self, peaks: Tensor) -> Tensor:
        """The largest of those channels, of `(heads * head_dim,)`, that `scale_queries` must treat alike."""
        return peaks if self.rotation is None else self.rotation.over_pairs(peaks.view(-1, self.head_dim)).flatten()

    def scale_queries(self, ratio: Tensor) -> None:
        """Multiply query channels by `(heads * head_dim,)`, and divide key channels by it."""
        for product, norm, factor in ((self.q, self.q_norm, ratio), (self.k, self.k_norm, 1 / ratio)):
            if norm is None:
                product.weight.data *= factor[:, None]
                product.bias.data *= factor
            else:
                norm.weight *= factor.view_as(norm.weight)
                norm.bias *= factor.view_as(norm.bias)

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        return tokens.reshape(batch, count, self.num_heads, self.head_dim).transpose(1, 2)

    def _reorder(self, order: Tensor) -> None:
        """Bring the channels of each query and key into the order in which the rotation turns them."""
        for product in (self.q, self.k):
            for values in (product.weight, product.bias):
                values.data = values.unflatten(0, (self.num_heads, self.head_dim))[:, order].flatten(0, 1)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.weight, norm.bias = norm.weight[..., order], norm.bias[..., order]


def _separate(attention: Any) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of query, key and value, however timm keeps them."""
    if attention.qkv is None:
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        return [(layer.weight, bias_of(layer.weight, layer.bias)) for layer in layers]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return list(zip(weight.chunk(3), bias_of(weight, bias).chunk(3), strict=True))
