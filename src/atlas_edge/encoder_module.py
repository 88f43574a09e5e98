"""The network that is exported: uint8 tiles in, embedding out, normalisation inside."""

import torch
from torch import Tensor, nn

from atlas_edge.spec import EncoderSpec


class EncoderModule(nn.Module):
    """A timm backbone between normalisation and pooling.

    Args:
        backbone: timm model with its classifier removed.
        spec: Mean, standard deviation and pooling to apply.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = spec.pooling
        self.prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("mean", (255.0 * mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1.0 / (255.0 * std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed `(B, H, W, 3)` uint8 tiles as `(B, D)` float32."""
        return self.embed(self.normalise(tiles)).float()

    def normalise(self, tiles: Tensor) -> Tensor:
        """`(B, H, W, 3)` uint8 -> `(B, 3, H, W)` float32 with zero mean and unit deviation per channel."""
        # The cast comes before the transpose: TensorRT refuses a uint8 Transpose.
        return (tiles.float().permute(0, 3, 1, 2) - self.mean) * self.scale

    def embed(self, images: Tensor) -> Tensor:
        """Pooled embedding `(B, D)` of normalised images `(B, 3, H, W)`."""
        if not self.prefix_tokens:
            pooled: Tensor = self.backbone(images)
            return pooled
        tokens = self.tokens(images)
        if self.pooling == "cls":
            return tokens[:, 0]
        patches = tokens[:, self.prefix_tokens :].mean(dim=1)
        return patches if self.pooling == "avg" else torch.cat([tokens[:, 0], patches], dim=1)

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens `(B, prefix + N, width)` after the last norm: CLS, registers, then patches."""
        features: Tensor = self.backbone.forward_features(images)
        return features
