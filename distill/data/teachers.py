"""Frozen teachers: what they answer to a batch of tiles, and what their licence allows."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.manifest import ModelProvenance
from atlas_edge.spec import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_edge.models.encoder_module import EncoderModule

# Models whose licence bars commercial use or derivatives, by the name under which they are known: their folders often
# carry no licence field.
_RESTRICTED = (
    "virchow2", "uni2", "uni-h", "h-optimus-1", "h0-mini", "conch", "gigapath", "phikon", "rudolfv",
    "midnight-restricted", "ctranspath"
)  # fmt: skip
_RESTRICTIVE = re.compile(r"(^|[^a-z])(nc|nd)([^a-z]|$)|non-?commercial|no-?deriv|research[- ]only", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """A teacher's answer to a batch.

    Both lie on the device that computed them; float32, or float16 where they come from a cache.

    Attributes:
        cls: `(B, D)`: the teacher's embedding, which its own pooling gives: a CLS token, say.
        patches: `(B, grid², width)` patch tokens on the student's grid, row by row; None where not wanted.
    """

    cls: "Tensor"
    patches: "Tensor | None"

    def some(self, tiles: slice) -> "Features":
        """Those of some of the tiles."""
        return Features(cls=self.cls[tiles], patches=None if self.patches is None else self.patches[tiles])


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        module: The network, on this process's device.
        spec: Of the network.
        provenance: Of its weights.
        half: Compute in 16 bits on a GPU; a CPU computes in float32.
    """

    module: "EncoderModule"
    spec: EncoderSpec
    provenance: ModelProvenance
    half: bool = True

    def features(self, tiles: NDArray[np.uint8], *, grid: int | None) -> Features:
        """Run the teacher on `(B, H, W, 3)` uint8 tiles.

        Args:
            tiles: Resized to the teacher's input where they differ.
            grid: Side of the student's patch grid, to which patch tokens are resized bilinearly; None leaves them out.

        Raises:
            UsageError: They are wanted, and the network has no square grid of them.
        """
        import torch
        from torch.nn import functional as F

        from atlas_edge.distill.training.device import half_type, own_device

        device = own_device()
        half = self.half and device.type == "cuda"
        with torch.no_grad(), torch.autocast(device.type, dtype=half_type(device), enabled=half):
            images = self.module.normalise(torch.from_numpy(tiles).to(device))
            if images.shape[-1] != self.spec.tile_px:
                images = F.interpolate(
                    images, size=self.spec.tile_px, mode="bicubic", antialias=True, align_corners=False
                )
            if grid is None:
                return Features(cls=self.module.embed(images).float(), patches=None)
            tokens = self.module.tokens(images)
            resized = F.interpolate(self._spatial(tokens), size=(grid, grid), mode="bilinear", align_corners=False)
            patches = resized.flatten(2).transpose(1, 2).float().contiguous()
            return Features(cls=self.module.pool(tokens).float(), patches=patches)

    def _spatial(self, tokens: "Tensor") -> "Tensor":
        """Patch tokens, or a CNN's last map, as `(B, width, side, side)`."""
        if tokens.ndim == 4:
            channels_last = getattr(self.module.backbone, "output_fmt", "NCHW") == "NHWC"
            return tokens.permute(0, 3, 1, 2) if channels_last else tokens
        prefix = self.module.prefix_tokens
        side = math.isqrt(tokens.shape[1] - prefix) if tokens.ndim == 3 else 0
        if not side or side**2 + prefix != tokens.shape[1]:
            raise UsageError(
                f"teacher {self.provenance.name} has no square grid of patch tokens",
                hint="use its embedding alone: --patch-weight 0 in training, no --grid for a cache",
            )
        return tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def open_teacher(name: str, *, half: bool = True) -> Teacher:
    """Load a teacher onto this process's device.

    Args:
        name: A folder in timm's form, `hf-hub:organisation/name`, or a registry name.
        half: Compute in 16 bits where that device is a GPU.

    Raises:
        InputError: It has random weights.
    """
    from atlas_edge.distill.training.device import own_device
    from atlas_edge.models.load import load_model

    loaded = load_model(name)
    if loaded.spec.random_weights:
        raise InputError(f"{name} has random weights: it teaches nothing", hint="give a trained model as teacher")
    return Teacher(module=loaded.module.to(own_device()), spec=loaded.spec, provenance=loaded.provenance, half=half)


def licence_warning(provenance: ModelProvenance) -> str | None:
    """Name the model whose licence bars commercial use or derivatives, or is not stated, and say so."""
    licence = provenance.licence
    known = next((name for name in _RESTRICTED if name in provenance.name.lower()), None)
    if licence is not None and _RESTRICTIVE.search(licence):
        return f"{provenance.name} is licensed {licence}: a student of it may inherit those limits"
    if known is not None:
        return f"{provenance.name} is known as {known}, whose licence bars commercial use or derivatives"
    if licence is None:
        return f"{provenance.name} states no licence: check that it allows distillation"
    return None
