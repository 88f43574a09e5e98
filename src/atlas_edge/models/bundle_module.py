"""A bundle as an `nn.Module` with its transform: what benchmark harnesses take."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.load import load_encoder
from atlas_edge.tiles import fit_tile

_LOGGER = logging.getLogger("atlas_edge")
# Grey levels that half precision may be out by; beyond, pixels are none of an 8-bit image.
_ROUNDING = 0.1
_FEW = 0.01


class TileTransform:
    """From an image to `(3, tile_px, tile_px)` float32, normalised: what `BundleModule` takes a batch of.

    Args:
        tile_px: Side of a tile; other images are resampled.
        mean: Per-channel mean, 0-1 scale.
        std: Per-channel standard deviation, 0-1 scale.
    """

    def __init__(self, tile_px: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.tile_px, self.mean, self.std = tile_px, tuple(mean), tuple(std)

    def __call__(self, image: Any) -> Tensor:
        """Transform a PIL image, an `(H, W, 3)` uint8 array, or a `(3, H, W)` uint8 tensor.

        Raises:
            InputError: Not 8-bit RGB.
        """
        pixels = fit_tile(_pixels(image), self.tile_px, "resize", name="image")
        scaled = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255.0
        return (scaled - _column(self.mean)) / _column(self.std)


class BundleModule(nn.Module):
    """`(B, 3, H, W)` normalised images in, `(B, D)` float32 embeddings out.

    Normalisation is undone and the pixels rounded to 8 bits, so that the graph's own is used once: through `transform`
    embeddings are those of `Encoder.encode`, bit for bit. It has no parameters and no gradients. A copy, or what
    another process unpickles, opens the bundle again.

    Args:
        bundle: See `torch_module`, as for the rest.
        mean: Per-channel mean.
        std: Per-channel standard deviation.
        device: Of the bundle.
        threads: Inference threads.

    Attributes:
        encoder: What computes.
        name: Of the encoder.
        embed_dim: D.
        mean, std: By which images are expected to be normalised.
        transform: From an image to what `forward` takes.
    """

    def __init__(
        self,
        bundle: str | Path,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        mean, std = _numbers("mean", mean), _numbers("std", std)
        self._opened_with = bundle, mean, std, device, threads
        self.encoder: Encoder = load_encoder(str(bundle), device=device, threads=threads)
        spec = self.encoder.spec
        self.name, self.embed_dim = spec.name, spec.embed_dim
        self.mean, self.std = mean or spec.mean, std or spec.std
        self.transform = TileTransform(spec.tile_px, self.mean, self.std)
        self._said = False

    def forward(self, images: Tensor) -> Tensor:
        """Embed `(B, 3, tile_px, tile_px)` normalised float, or uint8, images as `(B, D)` float32 on their device.

        Raises:
            InputError: Another shape, or pixels that cannot be those of an image.
            UsageError: Gradients are asked for.
        """
        return torch.from_numpy(self.encoder.encode(self._tiles(images))).to(images.device)

    def forward_with_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and `(B, N, C)` float32 patch tokens, row by row.

        Raises:
            UsageError: The bundle holds none (`--output tokens`), or gradients are asked for.
            InputError: As `forward`.
        """
        embeddings, tokens = self.encoder.encode_tokens(self._tiles(images))
        return torch.from_numpy(embeddings).to(images.device), torch.from_numpy(tokens).to(images.device)

    def __reduce__(self) -> tuple[Any, ...]:
        # A runtime's session is neither copied nor sent to another process.
        return BundleModule, self._opened_with

    def _tiles(self, images: Tensor) -> NDArray[np.uint8]:
        side = self.transform.tile_px
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side) or not len(images):
            raise InputError(
                f"images have shape {tuple(images.shape)}, expected (B, 3, {side}, {side})",
                hint="let the harness use the module's own transform",
            )
        if images.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                f"{self.name}: a bundle has no gradients",
                hint="leave out the tasks that attack or fine-tune the encoder",
            )
        if images.dtype == torch.uint8:
            pixels = images
        else:
            levels = 255.0 * (images.detach().float().cpu() * _column(self.std) + _column(self.mean))
            pixels = levels.round()
            self._check_levels(levels, pixels)
            pixels = pixels.clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _check_levels(self, levels: Tensor, pixels: Tensor) -> None:
        """Notice a normalisation by other numbers: pixels lie outside 0 to 255 then, or between whole grey levels."""
        low, high = float(levels.min()), float(levels.max())
        hint = f"let the harness use the module's own transform, or mean {self.mean} and std {self.std}"
        # Resampling by Lanczos or bicubic overshoots a little.
        if not -32 <= low <= high <= 287:
            raise InputError(
                f"{self.name}: with normalisation undone, pixels reach from {low:.0f} to {high:.0f}, expected 0 to 255",
                hint=hint,
            )
        between = float(((levels - pixels).abs() > _ROUNDING).float().mean())
        if between > _FEW and not self._said:
            self._said = True
            _LOGGER.warning(
                "%s: %.0f %% of the pixels are no 8-bit values once normalisation is undone: they were resampled in "
                "floating point, or normalised by other numbers; %s",
                self.name, 100 * between, hint,
            )  # fmt: skip


def _pixels(image: Any) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    elif isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    found: NDArray[np.uint8] = np.asarray(image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise InputError(
            f"an image of shape {found.shape} and {found.dtype}, expected 8-bit RGB",
            hint="give the transform what was read from the file",
        )
    return found


def _column(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(3, 1, 1)


def _numbers(name: str, given: Sequence[float] | None) -> tuple[float, ...] | None:
    """As plain numbers, of whatever holds them: a list, an array, a tensor."""
    if given is None:
        return None
    found = np.atleast_1d(np.asarray(given, dtype=np.float64))
    if found.shape != (3,) or not (found.min() >= 0 and found.max() <= 1) or (name == "std" and found.min() == 0):
        raise UsageError(f"{name} {given}: expected three numbers on the 0-1 scale", hint=f"leave out {name}")
    return tuple(map(float, found))
