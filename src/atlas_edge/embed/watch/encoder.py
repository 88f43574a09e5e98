"""Whose fault it was: an encoder that is broken, or a slide that it cannot embed."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.watch.pace import Pace
from atlas_edge.encoder import Capabilities, Encoder, capabilities_of


class WatchedEncoder:
    """An encoder that is known by what came out of it: an error of its own is told from one of reading a slide.

    Attributes:
        raised: What its latest call raised; None where it succeeded.
        pace: How fast it embeds.

    Args:
        encoder: What embeds.
        batch: Tiles that `works` tries.
    """

    def __init__(self, encoder: Encoder, batch: int) -> None:
        self.pace = Pace()
        self.spec, self.runtime = encoder.spec, encoder.runtime
        self.raised: Exception | None = None
        self._encoder, self._batch = encoder, batch

    @property
    def capabilities(self) -> Capabilities:
        """See `Encoder.capabilities`."""
        return capabilities_of(self._encoder)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        with self._noted(len(tiles)):
            return self._encoder.encode(tiles)

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`."""
        with self._noted(len(tiles)):
            return self._encoder.encode_tokens(tiles)

    def works(self) -> bool:
        """Whether it embeds white tiles: then what it failed on is to blame."""
        side = self.spec.tile_px
        try:
            self._encoder.encode(np.full((self._batch, side, side, 3), 255, np.uint8))
        except Exception:
            return False
        return True

    def close(self) -> None:
        """See `Encoder.close`."""
        self._encoder.close()

    @contextmanager
    def _noted(self, tiles: int) -> Iterator[None]:
        self.raised = None
        try:
            yield
        except Exception as error:
            self.raised = error
            raise
        self.pace.embedded(tiles)
