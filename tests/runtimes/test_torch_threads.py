"""PyTorch's threads are the process's: encoders with different numbers must not run with each other's."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.models.load import load_encoder


def test_each_encoder_runs_with_its_own_threads(tiny_model: Path, tiny_tiles: NDArray[np.uint8]) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        one, two = (load_encoder(str(tiny_model), threads=threads) for threads in (1, 2))
        for encoder, threads in ((one, 1), (two, 2), (one, 1)):
            encoder.encode(tiny_tiles)
            assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        load_encoder(str(tiny_model)).encode(tiny_tiles)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
