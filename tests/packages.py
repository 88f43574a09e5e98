"""Packages of encoders that are known: what they embed, how long they take."""

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.selftest.run import selftest_tiles, write_selftest
from atlas_edge.bundle import write_manifest
from atlas_edge.encoder import Capabilities
from atlas_edge.manifest import Execution, Manifest, ModelProvenance
from atlas_edge.spec import EncoderSpec, Precision, Target

SPEC = EncoderSpec(
    name="tiny", architecture="vit", embed_dim=4, tile_px=32, mean=(0.5,) * 3, std=(0.5,) * 3, pooling="cls", patch=8
)


class KnownEncoder:
    """Mean colours, off by noise where it is asked for; `seconds` a tile by the tests' clock."""

    capabilities = Capabilities()

    def __init__(self, runtime: str = "known", *, seconds: float = 0.01, noise: float = 0.0) -> None:
        self.spec, self.runtime, self.seconds, self.noise = SPEC, runtime, seconds, noise
        self.closed = False

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert not self.closed
        time.sleep(self.seconds * len(tiles))
        colours = tiles.mean(axis=(1, 2)).astype(np.float32)
        exact = np.concatenate([colours, np.full((len(tiles), 1), 100, np.float32)], axis=1)
        off = np.where(np.arange(4) % 2, 100 * self.noise, 0).astype(np.float32)
        found: NDArray[np.float32] = exact + off
        return found

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


@cache
def drawn_tiles() -> NDArray[np.uint8]:
    """Those of every selftest of `SPEC`."""
    return selftest_tiles(SPEC)


def make_bundle(
    folder: Path,
    target: Target = Target.ONNX,
    precision: Precision = Precision.FP32,
    *,
    model: bytes = b"graph",
    noise: float = 0.0,
    weights: str = "a" * 64,
    portable: bool = False,
    spec: EncoderSpec = SPEC,
) -> Path:
    """A bundle whose selftest says that it was off by `noise` where it was made."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "weights.bin").write_bytes(model * 1000)
    (folder / "README.md").write_text(f"{target} {precision}\n")
    quick = {"seconds": 0.0}
    write_selftest(folder, KnownEncoder(**quick), drawn_tiles(), deployed=KnownEncoder(noise=noise, **quick))
    manifest = Manifest(
        encoder=spec,
        target=target,
        precision=precision,
        execution=Execution(model_file="model.onnx", portable=portable),
        versions={},
        command=("atlas-export",),
        config={},
        model=ModelProvenance(name="tiny", source="checkpoint", sha256=weights),
        files=(),
    )
    write_manifest(folder, manifest)
    return folder
