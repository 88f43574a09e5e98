"""The one protocol that every runtime implements."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.spec import EncoderSpec


class Configure(Protocol):
    """Changes how an encoder runs, from its next call on."""

    def __call__(self, *, batch: int | None = None, streams: int | None = None) -> None:
        """Set tiles a call, and calls side by side; unchanged where None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """How an encoder runs, and what can be changed of it.

    Attributes:
        gpu: CUDA's index of the GPU that computes; None on the processor.
        batch: Tiles that it computes at a time, fewer are filled up; None where it takes them as they come.
        fixed_batch: `batch` is the graph's own and cannot be changed.
        streams: Calls that run side by side.
        configure: Changes `batch` and `streams`; None where nothing can be changed.
        notes: What must be read with its speed.
    """

    gpu: int | None = None
    batch: int | None = None
    fixed_batch: bool = False
    streams: int = 1
    configure: Configure | None = None
    notes: tuple[str, ...] = ()


@runtime_checkable
class Encoder(Protocol):
    """Maps tiles to embeddings. Normalisation lives inside.

    Attributes:
        spec: Shape and preprocessing.
        runtime: What executes it, as printed in reports: `torch 2.14.1 (f32, 2 threads)`.
    """

    spec: EncoderSpec
    runtime: str

    @property
    def capabilities(self) -> Capabilities:
        """How it runs now."""
        ...

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch.

        Args:
            tiles: `(B, tile_px, tile_px, 3)` uint8 RGB, any B >= 1.

        Returns:
            `(B, embed_dim)` float32, not normalised.

        Threads may share an encoder.

        Raises:
            InputError: Wrong dtype or shape.
            RuntimeMissing: The encoder is closed.
        """
        ...

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embed a batch, and give its patch tokens, too: dense features.

        Args:
            tiles: As `encode` takes them.

        Returns:
            What `encode` returns, and `(B, N, C)` float32 patch tokens after the last norm: N is row by row the grid
            that `spec.tokens` names.

        Raises:
            UsageError: The encoder holds none.
            InputError: Wrong dtype or shape.
            RuntimeMissing: The encoder is closed.
        """
        ...

    def close(self) -> None:
        """Free the device, the model and its files. Calling it twice is harmless; `encode` raises afterwards."""
        ...


def capabilities_of(encoder: Encoder) -> Capabilities:
    """How it runs; nothing can be changed of an encoder that does not say it, such as one written for a script."""
    return getattr(encoder, "capabilities", None) or Capabilities()


def closed_error(spec: EncoderSpec) -> RuntimeMissing:
    """For `encode` after `close`."""
    return RuntimeMissing(f"{spec.name}: the encoder is closed", hint="open it again")


def check_graph(
    name: str, spec: EncoderSpec, inputs: Sequence[Sequence[object]], outputs: Sequence[Sequence[object]]
) -> None:
    """Refuse a graph that does not take the tiles, or give the embeddings, that its manifest speaks of.

    Args:
        name: What the graph is called.
        spec: From the manifest.
        inputs: Shape of each input; a size that is no number may be any.
        outputs: Shape of each output.

    Raises:
        InputError: They differ, or there are more or fewer.
    """
    wanted: dict[str, tuple[Sequence[Sequence[object]], tuple[tuple[int, ...], ...]]] = {
        "takes": (inputs, ((spec.tile_px, spec.tile_px, 3),)),
        "gives": (outputs, spec.output_shapes(tokens=True)),
    }
    for verb, (shapes, expected) in wanted.items():
        rests = [[size if isinstance(size, int) and size >= 0 else "any" for size in shape[1:]] for shape in shapes]
        fits = [len(rest) for rest in rests] == [len(rest) for rest in expected]
        sizes = zip(chain(*rests), chain(*expected), strict=False)
        if not fits or any(size not in ("any", want) for size, want in sizes):
            found = _shapes_in_words(rests) or "nothing"
            raise InputError(
                f"{name} {verb} {found}, the manifest says {_shapes_in_words(expected)}",
                hint="export the bundle again",
            )


def check_gives_tokens(spec: EncoderSpec) -> None:
    """Refuse `encode_tokens` of an encoder that gives embeddings alone.

    Raises:
        UsageError: It does.
    """
    if spec.tokens is None:
        raise UsageError(
            f"{spec.name}: this encoder holds no patch tokens",
            hint="export it with --output tokens; in PyTorch, load_encoder opens a vision transformer with them",
        )


def _shapes_in_words(shapes: Iterable[Sequence[object]]) -> str:
    return " and ".join(str(("B", *shape)) for shape in shapes)


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
