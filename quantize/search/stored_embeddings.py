"""Embeddings that are computed once and outlive a kill: an encoder that remembers every tile it has seen."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, Encoder, closed_error
from atlas_edge.spec import EncoderSpec

_DIGEST_BYTES = 16


class RememberingEncoder:
    """An encoder that looks a tile up in a file before it computes it.

    The file holds a digest of the pixels and the embedding, one after the other, and is only ever appended to: what a
    kill cuts off at its end is dropped.

    Args:
        open_encoder: Opens the encoder; called for the first tile that the file does not hold.
        spec: Its shape.
        runtime: What executes it.
        path: The file; it belongs to this encoder and no other.
    """

    capabilities = Capabilities()

    def __init__(self, open_encoder: Callable[[], Encoder], spec: EncoderSpec, *, runtime: str, path: Path) -> None:
        self.spec = spec
        self.runtime = runtime
        self._open: Callable[[], Encoder] | None = open_encoder
        self._encoder: Encoder | None = None
        self._path = path
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self._load()

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        if self._open is None:
            raise closed_error(self.spec)
        keys = [hashlib.blake2b(tile.tobytes(), digest_size=_DIGEST_BYTES).digest() for tile in tiles]
        missing = [index for index, key in enumerate(keys) if key not in self._known]
        if missing:
            if self._encoder is None:
                self._encoder = self._open()
            found = self._encoder.encode(tiles[missing])
            with self._path.open("ab") as file:
                for index, embedding in zip(missing, found, strict=True):
                    self._known[keys[index]] = embedding
                    file.write(keys[index] + embedding.astype("<f4").tobytes())
                file.flush()
                os.fsync(file.fileno())
        return np.stack([self._known[key] for key in keys])

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`; they are not remembered."""
        if self._open is None:
            raise closed_error(self.spec)
        if self._encoder is None:
            self._encoder = self._open()
        return self._encoder.encode_tokens(tiles)

    def rest(self) -> None:
        """Free the encoder until a tile comes that the file does not hold."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None

    def close(self) -> None:
        """See `Encoder.close`."""
        self.rest()
        self._open = None

    def _load(self) -> None:
        if not self._path.is_file():
            return
        width = _DIGEST_BYTES + 4 * self.spec.embed_dim
        data = self._path.read_bytes()
        whole = len(data) // width * width
        for start in range(0, whole, width):
            record = data[start : start + width]
            self._known[record[:_DIGEST_BYTES]] = np.frombuffer(record[_DIGEST_BYTES:], "<f4").astype(np.float32)
        if whole < len(data):
            os.truncate(self._path, whole)
