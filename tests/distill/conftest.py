"""A tiny teacher's student and two folders of tiles, 32 px."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four smooth random tiles in two classes."""
    return _smooth_tiles(tmp_path_factory.mktemp("tiles") / "few", seed=0)


@pytest.fixture(scope="session")
def held_out_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many others, of the same classes."""
    return _smooth_tiles(tmp_path_factory.mktemp("tiles") / "held-out", seed=1)


def _smooth_tiles(folder: Path, *, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for label in ("dark", "light"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            low = generator.integers(0, 160, (4, 4, 3)) + (80 if label == "light" else 0)
            image = Image.fromarray(low.astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(folder / label / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight ViT (32 px, patch 8, width 32, depth 2, one head) as a timm folder to train from."""
    import torch
    from timm import create_model

    from atlas_edge.distill.training.student import Architecture, save_student

    folder = tmp_path_factory.mktemp("students") / "tiny-student"
    folder.mkdir()
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 1, "reg_tokens": 1}
    torch.manual_seed(1)
    model = create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    architecture = Architecture(name="vit_tiny_patch16_224", arguments=arguments, tile_px=32)
    save_student(folder, model.state_dict(), architecture, licence="cc0-1.0", half=False)
    return folder
