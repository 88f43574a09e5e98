"""PyTorch, eager, float32: the yardstick."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, check_tiles, closed_error
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
    """

    def __init__(
        self, module: "nn.Module", spec: EncoderSpec, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        import torch

        self._threads = threads
        self._set_threads()
        self.spec = spec
        self.device = torch.device(device)
        self.capabilities = Capabilities(gpu=None if self.device.type == "cpu" else self.device.index or 0)
        self.module: nn.Module | None = module.eval().to(self.device)
        self.runtime = f"PyTorch {torch.__version__.partition('+')[0]} eager f32, {torch.get_num_threads()} threads"

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        check_tiles(tiles, self.spec)
        import torch

        module = self.module
        if module is None:
            raise closed_error(self.spec)
        self._set_threads()

        def infer(piece: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                result: NDArray[np.float32] = module(torch.from_numpy(piece).to(self.device)).cpu().numpy()
            return result

        return encode_in_pieces(tiles, infer, piece=_PIECE, embed_dim=self.spec.embed_dim, fixed=False)

    def close(self) -> None:
        """See `Encoder.close`. The module is freed where nobody else holds it."""
        self.module = None

    def _set_threads(self) -> None:
        import torch

        if self._threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self._threads)
