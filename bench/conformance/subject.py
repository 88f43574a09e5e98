"""The bundle that is asked about: its files, its selftest tiles, and what its embeddings are judged by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.bench.selftest.run import StoredSelftest, allowed_distance, read_selftest
from atlas_edge.bundle import MANIFEST, model_folder, sha256_file, verify_bundle
from atlas_edge.manifest import Manifest
from atlas_edge.package.signature import read_public_key
from atlas_edge.runtimes.batching import encode_in_pieces

_PIECE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Embeddings that a program computed of the bundle's selftest tiles.

    Attributes:
        tiles: Tiles.
        cosine_median: To the full-precision embeddings stored in the bundle.
        cosine_worst: Smallest of them.
        distance: 1 - `cosine_median`.
        allowed: Largest distance that passes, as in `selftest`.
        to_deployed_worst: Smallest cosine to what the same graph computed where it was made; None where that was not
            stored.
    """

    tiles: int
    cosine_median: float
    cosine_worst: float
    distance: float
    allowed: float
    to_deployed_worst: float | None

    @property
    def passed(self) -> bool:
        """Whether it is no farther from full precision than allowed."""
        return self.distance <= self.allowed

    def __str__(self) -> str:
        deployed = (
            "" if self.to_deployed_worst is None else f", {self.to_deployed_worst:.5f} worst to where it was made"
        )
        return (
            f"cosine {self.cosine_median:.5f} in the median, {self.cosine_worst:.4f} worst of {self.tiles} tiles"
            f"{deployed}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A verified bundle.

    Attributes:
        bundle: Its folder.
        manifest: Of it.
        manifest_sha256: Of `manifest.json`, which holds the hash of every other file.
        model: The file that its runtime opens.
        onnx: An ONNX graph: `model`, or the graph that an engine was built from; None for OpenVINO.
        tiles: `(N, tile_px, tile_px, 3)` uint8.
        stored: What is stored of those tiles.
        public_key: Of whoever should have signed the bundle; None where nobody is named.
    """

    bundle: Path
    manifest: Manifest
    manifest_sha256: str
    model: Path
    onnx: Path | None
    tiles: NDArray[np.uint8]
    stored: StoredSelftest
    public_key: Path | None = None

    def embed(
        self, infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, count: int | None = None
    ) -> NDArray[np.float32]:
        """Embed the first tiles, or all, in pieces that the graph takes."""
        fixed = self.manifest.execution.batch
        shapes = self.manifest.encoder.output_shapes(tokens=False)
        pieces = encode_in_pieces(
            self.tiles[:count], lambda piece: [infer(piece)], piece=fixed or _PIECE, shapes=shapes, fixed=bool(fixed)
        )
        return pieces[0]

    def figures(self, found: NDArray[np.float32]) -> Figures:
        """Judge embeddings of the first tiles, or of all.

        Raises:
            InputError: One of them is not finite, or zero.
        """
        count, stored = len(found), self.stored
        deployed = None if stored.deployed is None else stored.deployed[:count]
        stored = replace(stored, reference=stored.reference[:count], deployed=deployed)
        agreement = embedding_agreement(stored.reference, found)
        _, allowed = allowed_distance(stored, self.manifest.precision)
        return Figures(
            tiles=count,
            cosine_median=agreement.cosine_median,
            cosine_worst=agreement.cosine_worst,
            distance=1.0 - agreement.cosine_median,
            allowed=allowed,
            to_deployed_worst=None if deployed is None else embedding_agreement(deployed, found).cosine_worst,
        )


def read_subject(bundle: Path, *, public_key: Path | None = None) -> Subject:
    """Verify a bundle, and draw its selftest tiles.

    Args:
        bundle: Its folder.
        public_key: See `Subject`.

    Raises:
        InputError: It is damaged, a package, carries no selftest, or its tiles cannot be drawn here; the key is none.
        UsageError, RuntimeMissing: There is no such key, or nothing here that checks signatures by it.
        ChecksumError: A file differs from the manifest.
    """
    if public_key is not None:
        read_public_key(public_key)
    manifest = verify_bundle(bundle)
    stored = read_selftest(bundle)
    folder, execution = model_folder(bundle), manifest.execution
    graphs = [name for name in (execution.model_file, execution.fallback_file) if name and name.endswith(".onnx")]
    return Subject(
        bundle=bundle,
        manifest=manifest,
        manifest_sha256=sha256_file(bundle / MANIFEST),
        model=folder / execution.model_file,
        onnx=folder / graphs[0] if graphs else None,
        tiles=stored.draw(manifest.encoder),
        stored=stored,
        public_key=public_key,
    )
