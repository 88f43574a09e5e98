"""The one protocol that every runtime implements."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.spec import EncoderSpec


@runtime_checkable
class Encoder(Protocol):
    """Maps tiles to embeddings. Normalisation lives inside.

    Attributes:
        spec: Shape and preprocessing.
        runtime: What executes it, as printed in reports: `torch 2.14.1 (f32, 2 threads)`.
    """

    spec: EncoderSpec
    runtime: str

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch.

        Args:
            tiles: `(B, tile_px, tile_px, 3)` uint8 RGB, any B >= 1.

        Returns:
            `(B, embed_dim)` float32, not normalised.

        Raises:
            InputError: Wrong dtype or shape.
        """
        ...

    def close(self) -> None:
        """Free the device and the model. Calling it twice is harmless."""
        ...


def check_tiles(tiles: NDArray[np.uint8], spec: EncoderSpec) -> None:
    """Refuse a batch that the encoder's graph cannot take.

    Raises:
        InputError: Not uint8, not `(B, tile_px, tile_px, 3)`, or empty.
    """
    expected = f"(B, {spec.tile_px}, {spec.tile_px}, 3) uint8"
    if tiles.dtype != np.uint8:
        raise InputError(f"tiles are {tiles.dtype}, expected {expected}", hint="pass 8-bit RGB; do not normalise")
    if tiles.ndim != 4 or tiles.shape[1:] != (spec.tile_px, spec.tile_px, 3):
        raise InputError(
            f"tiles have shape {tiles.shape}, expected {expected}", hint="crop or resize the tiles, or use --tile-fit"
        )
    if tiles.shape[0] == 0:
        raise InputError(f"empty batch, expected {expected}")
