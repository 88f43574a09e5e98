"""PyTorch, eager, float32: the yardstick."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, check_gives_tokens, check_tiles, closed_error
from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.runtimes.batching import encode_in_pieces
from atlas_edge.spec import EncoderSpec

if TYPE_CHECKING:
    from torch import nn

_PIECE = 32


class TorchEncoder:
    """A module that takes uint8 tiles, run eagerly on the CPU or on a CUDA device.

    Args:
        module: uint8 `(B, H, W, 3)` in, float32 `(B, D)` out.
        spec: Shape and preprocessing.
        threads: PyTorch's intra-op threads: a setting of the whole process, made again at every call, so that encoders
            with other numbers can take turns; unchanged when None.
        device: `cpu`, `cuda` or `cuda:1`.

    Raises:
        UsageError: PyTorch knows no such device.
        RuntimeMissing: It is not here.
    """

    def __init__(
        self, module: "nn.Module", spec: EncoderSpec, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        import torch

        self._threads = threads
        self._set_threads()
        self.spec = spec
        try:
            self.device = torch.device(device.lower())
        except RuntimeError as error:
            raise UsageError(f"--device {device}: PyTorch knows no such device", hint="cpu, cuda, cuda:1") from error
        self.capabilities = Capabilities(gpu=None if self.device.type == "cpu" else self.device.index or 0)
        try:
            self.module: nn.Module | None = module.eval().to(self.device)
        except Exception as error:  # AssertionError where it was built without CUDA, RuntimeError without a driver
            raise RuntimeMissing(
                f"--device {device}: PyTorch cannot use it: {' '.join(str(error).split())}", hint="leave --device out"
            ) from error
        self.runtime = f"PyTorch {torch.__version__.partition('+')[0]} eager f32, {torch.get_num_threads()} threads"

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        return self._encode(tiles, tokens=False)[0]

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`."""
        check_gives_tokens(self.spec)
        embeddings, tokens = self._encode(tiles, tokens=True)
        return embeddings, tokens

    def _encode(self, tiles: NDArray[np.uint8], *, tokens: bool) -> list[NDArray[np.float32]]:
        check_tiles(tiles, self.spec)
        import torch

        module: Any = self.module
        if module is None:
            raise closed_error(self.spec)
        self._set_threads()

        def infer(piece: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
            with torch.inference_mode():
                images = torch.from_numpy(piece).to(self.device)
                found = module.forward_with_tokens(images) if tokens else (module(images),)
            return [part.cpu().numpy() for part in found]

        shapes = self.spec.output_shapes(tokens=tokens)
        return encode_in_pieces(tiles, infer, piece=_PIECE, shapes=shapes, fixed=False)

    def close(self) -> None:
        """See `Encoder.close`. The module is freed where nobody else holds it."""
        self.module = None

    def _set_threads(self) -> None:
        import torch

        if self._threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self._threads)
