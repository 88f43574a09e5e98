"""Frozen teachers: what they answer to a batch of tiles, and what their licence allows."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.manifest import ModelProvenance
from atlas_edge.spec import EncoderSpec

if TYPE_CHECKING:
    from atlas_edge.encoder_module import EncoderModule

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

    Attributes:
        cls: `(B, D)` float32: CLS token, or pooled features of a CNN.
        patches: `(B, grid², D)` float32 patch tokens on the student's grid, row by row; None where not wanted.
    """

    cls: NDArray[np.float32]
    patches: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded teacher."""

    module: "EncoderModule"
    spec: EncoderSpec
    provenance: ModelProvenance

    def features(self, tiles: NDArray[np.uint8], *, grid: int | None) -> Features:
        """Run the teacher on `(B, H, W, 3)` uint8 tiles.

        Args:
            tiles: Resized to the teacher's input where they differ.
            grid: Side of the student's patch grid, to which patch tokens are resized bilinearly; None leaves them out.
        """
        import torch
        from torch.nn import functional as F

        with torch.inference_mode():
            device = next(self.module.parameters()).device
            images = self.module.normalise(torch.from_numpy(tiles).to(device))
            if images.shape[-1] != self.spec.tile_px:
                images = F.interpolate(
                    images, size=self.spec.tile_px, mode="bicubic", antialias=True, align_corners=False
                )
            backbone = self.module.backbone
            found = backbone.forward_features(images)
            if found.ndim == 4:
                pooled, spatial = self.module.embed(images), found
            else:
                prefix = self.module.prefix_tokens
                pooled = found[:, 0] if prefix else found.mean(1)
                side = round((found.shape[1] - prefix) ** 0.5)
                spatial = found[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
            patches = None
            if grid is not None:
                resized = F.interpolate(spatial, size=(grid, grid), mode="bilinear", align_corners=False)
                patches = resized.flatten(2).transpose(1, 2).float().contiguous().cpu().numpy()
            return Features(cls=pooled.float().cpu().numpy(), patches=patches)


def open_teacher(name: str) -> Teacher:
    """Load a teacher: a folder in timm's form, `hf-hub:organisation/name`, or a registry name.

    Raises:
        InputError: It has random weights.
    """
    import torch

    from atlas_edge.models import load_model

    loaded = load_model(name)
    if loaded.spec.random_weights:
        raise InputError(f"{name} has random weights: it teaches nothing", hint="give a trained model as teacher")
    module = loaded.module.cuda() if torch.cuda.is_available() else loaded.module
    return Teacher(module=module, spec=loaded.spec, provenance=loaded.provenance)


def licence_warning(provenance: ModelProvenance) -> str | None:
    """Say so, by name, where a teacher's licence bars commercial use or derivatives, or is not stated."""
    licence = provenance.licence
    known = next((name for name in _RESTRICTED if name in provenance.name.lower()), None)
    if licence is not None and _RESTRICTIVE.search(licence):
        return f"teacher {provenance.name} is licensed {licence}: a student of it may inherit those limits"
    if known is not None:
        return f"teacher {provenance.name} is known as {known}, whose licence bars commercial use or derivatives"
    if licence is None:
        return f"teacher {provenance.name} states no licence: check that it allows distillation"
    return None
