"""The network that is exported: uint8 tiles in, embedding out, normalisation inside."""

import copy
from typing import Any, get_args

import torch
from torch import Tensor, nn

from atlas_edge.errors import InputError
from atlas_edge.spec import EncoderSpec, Pooling, TokenGrid

# Poolings that need no more than the tokens; all others are the backbone's own.
TOKEN_POOLINGS = frozenset({"cls", "cls+mean", "avg"})


class EncoderModule(nn.Module):
    """A timm backbone between normalisation and pooling.

    Where the pooling is the backbone's own, the embedding is what the backbone returns: some normalise after pooling,
    average the class token in, or widen. Another pooling is taken from the tokens.

    Args:
        backbone: timm model with its classifier removed.
        spec: Mean, standard deviation and pooling to apply.

    Attributes:
        gives_tokens: Whether graphs that are made of it have the patch tokens as a second output.
    """

    gives_tokens = False
    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = spec.pooling
        self.prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        from_tokens = self.prefix_tokens and spec.pooling in TOKEN_POOLINGS
        self.own_pooling = not from_tokens or spec.pooling == own_pooling(backbone)
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("mean", (255.0 * mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1.0 / (255.0 * std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed `(B, H, W, 3)` uint8 tiles as `(B, D)` float32."""
        return self.embed(self.normalise(tiles)).float()

    def forward_with_tokens(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding `(B, D)` and patch tokens `(B, N, C)` of tiles as `forward` takes them, both float32.

        Raises:
            InputError: The network has other tokens than `token_grid` says.
        """
        tokens = self.tokens(self.normalise(tiles))
        patches, grid = tokens[:, self.prefix_tokens :], self.token_grid
        if grid is None or tuple(patches.shape[1:]) != (grid.rows * grid.columns, grid.channels):
            raise InputError(
                f"the network has tokens of shape {tuple(tokens.shape)}, expected {self.prefix_tokens} and {grid}",
                hint="export without --output tokens",
            )
        return self.pool(tokens).float(), patches.float()

    @property
    def token_grid(self) -> TokenGrid | None:
        """Patch tokens of a tile; None where the backbone is no vision transformer."""
        backbone: Any = self.backbone
        grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
        if grid is None or not hasattr(backbone, "num_prefix_tokens"):
            return None
        return TokenGrid(rows=grid[0], columns=grid[1], channels=backbone.num_features)

    def giving_tokens(self) -> "EncoderModule":
        """The same network, of which graphs are made with patch tokens."""
        found = copy.copy(self)
        found.gives_tokens = True
        return found

    def normalise(self, tiles: Tensor) -> Tensor:
        """`(B, H, W, 3)` uint8 -> `(B, 3, H, W)` float32 with zero mean and unit deviation per channel."""
        # The cast comes before the transpose: TensorRT refuses a uint8 Transpose.
        return (tiles.float().permute(0, 3, 1, 2) - self.mean) * self.scale

    def embed(self, images: Tensor) -> Tensor:
        """Pooled embedding `(B, D)` of normalised images `(B, 3, H, W)`."""
        if self.own_pooling:
            pooled: Tensor = self.backbone(images)
            return pooled
        return self.pool(self.tokens(images))

    def pool(self, tokens: Tensor) -> Tensor:
        """Pooled embedding `(B, D)` of what `tokens` gave: `embed` for who needs both."""
        if self.own_pooling:
            pooled: Tensor = self.backbone.forward_head(tokens)
            return pooled
        cls, patches = tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)
        parts = {"cls": [cls], "avg": [patches], "cls+mean": [cls, patches]}[self.pooling]
        # A backbone that normalises after pooling has not normalised its tokens.
        norm = getattr(self.backbone, "fc_norm", None) or nn.Identity()
        return torch.cat([norm(part) for part in parts], dim=1)

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens `(B, prefix + N, width)` after the last norm: CLS, registers, then patches."""
        features: Tensor = self.backbone.forward_features(images)
        return features


def own_pooling(backbone: nn.Module) -> Pooling | None:
    """What a timm backbone does by itself; None where it leaves its tokens or feature map as they are."""
    found = getattr(backbone, "global_pool", None)
    if not isinstance(found, str):  # a CNN's pooling is a module, of the network or of its head
        head = getattr(backbone, "head", None)
        found = getattr(found, "pool_type", getattr(getattr(head, "global_pool", None), "pool_type", "own"))
    if found == "":
        return None
    if found == "token" and not hasattr(backbone, "head_dist"):  # a distilled network averages two tokens
        return "cls"
    name = str(found).removeprefix("fast") or "avg"
    return next((pooling for pooling in get_args(Pooling) if pooling == name), "own")


def has_class_token(backbone: nn.Module) -> bool:
    """Whether the first token is a class token: registers alone make none."""
    return any(name.rpartition(".")[2] == "cls_token" for name, _ in backbone.named_parameters())
