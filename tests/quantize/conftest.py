from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.graph import export_onnx
from atlas_edge.models import LoadedModel, load_model


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="session")
def tiny_onnx(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(tiny.module, tiny.spec, tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="session")
def calibration() -> list[NDArray[np.uint8]]:
    """Five batches of smooth random tiles: a coarse random pattern, enlarged."""
    coarse = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 8, 3), dtype=np.uint8)
    return list(coarse.repeat(4, axis=2).repeat(4, axis=3))


@pytest.fixture(scope="session")
def held_out() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(2).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)
