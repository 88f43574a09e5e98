"""The encoders that are judged: opened by name, with answers that are kept on disk where asked.

An evaluation that was stopped, or is repeated beside another student, then computes only what is missing.
"""

import hashlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bundle import MANIFEST, sha256_file
from atlas_edge.encoder import Encoder, closed_error
from atlas_edge.errors import UsageError
from atlas_edge.models.load import load_encoder
from atlas_edge.models.students import EMBEDDED
from atlas_edge.models.timm_config import WEIGHTS
from atlas_edge.system.atomic import write_atomic

_RANDOM = "random:"


def open_judged(name: str, *, threads: int | None = None, keep: Path | None = None) -> Encoder:
    """Open what `load_encoder` opens, or a student as it is before training.

    Args:
        name: Model folder, registry name or bundle; or `random:ARCHITECTURE:SEED`, such as
            `random:vit_tiny_patch16_224:0`: what a student is worth that has learned nothing.
        threads: Inference threads.
        keep: Folder for embeddings; None keeps none.

    Raises:
        UsageError: No such model.
    """
    encoder = _untrained(name, threads) if name.startswith(_RANDOM) else load_encoder(name, threads=threads)
    identity = _identity(name)
    if keep is None or identity is None:
        return encoder
    # The same weights give other embeddings with other means, another pooling or another size.
    identity = f"{identity}:{encoder.runtime}:{encoder.spec.model_dump_json()}"
    return StoredEncoder(encoder, identity=identity, folder=keep)


class StoredEncoder:
    """An encoder whose answers are kept, one file a batch, named by the weights and the pixels.

    Args:
        encoder: Whose answers.
        identity: Says which weights and runtime gave them, and how tiles are prepared.
        folder: Where they are kept.
    """

    def __init__(self, encoder: Encoder, *, identity: str, folder: Path) -> None:
        self.spec, self.runtime, self.capabilities = encoder.spec, encoder.runtime, encoder.capabilities
        self._encoder: Encoder | None = encoder
        self._identity, self._folder = identity, folder
        folder.mkdir(parents=True, exist_ok=True)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        if self._encoder is None:
            raise closed_error(self.spec)
        digest = hashlib.sha256(f"{self._identity}:{tiles.shape}".encode() + np.ascontiguousarray(tiles).tobytes())
        path = self._folder / f"{digest.hexdigest()}.npy"
        if path.is_file():
            kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
            return kept
        found = self._encoder.encode(tiles)
        buffer = io.BytesIO()
        np.save(buffer, found, allow_pickle=False)
        write_atomic(path, buffer.getvalue())
        return found

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`; they are not kept."""
        if self._encoder is None:
            raise closed_error(self.spec)
        return self._encoder.encode_tokens(tiles)

    def close(self) -> None:
        """See `Encoder.close`."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


def _untrained(name: str, threads: int | None) -> Encoder:
    from atlas_edge.distill.training.student import build_student, save_student

    architecture_name, _, seed = name.removeprefix(_RANDOM).partition(":")
    if not seed.isdigit():
        raise UsageError(f"{name} names no seed", hint="give random:vit_tiny_patch16_224:0, for instance")
    backbone, architecture = build_student(architecture_name, seed=int(seed))
    with TemporaryDirectory() as scratch:
        save_student(Path(scratch), backbone.state_dict(), architecture, licence="other", half=False)
        return load_encoder(scratch, threads=threads)


def _identity(name: str) -> str | None:
    """Hash of a bundle's manifest (which holds its files' hashes) or of a model's weights; None without such a file."""
    if name in EMBEDDED:
        return EMBEDDED[name].weights_sha256
    if name.startswith(_RANDOM):
        return name
    folder = Path(name.removeprefix("local-dir:"))
    for file in (MANIFEST, WEIGHTS):
        if (folder / file).is_file():
            return sha256_file(folder / file)
    return None
