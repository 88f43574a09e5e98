import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import LoadedModel, load_model
from support import TINY_PX

_VIT: dict[str, Any] = {"img_size": TINY_PX, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
# Small forms of networks with parts that plain vision transformers lack.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {**_VIT, "mlp_ratio": 3.0}),
    "qk-norm": ("vit_tiny_patch16_224", {**_VIT, "qk_norm": True}),
    "post-norm": ("eva02_enormous_patch14_clip_224", {**_VIT, "qkv_bias": False, "global_pool": "token"}),
    "beit": ("beit_base_patch16_224", {**_VIT, "global_pool": "token"}),
    "eva02": ("eva02_small_patch14_224", {**_VIT, "global_pool": "token"}),
    "eva02-clip": ("eva02_base_patch16_clip_224", {**_VIT, "global_pool": "token"}),
    "dinov3": ("vit_small_patch16_dinov3", {**_VIT, "global_pool": "token"}),
    "dinov3-qkv-bias": ("vit_small_patch16_dinov3_qkvb", {**_VIT, "global_pool": "token"}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": TINY_PX, "window_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4]},
    ),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [16, 24, 32, 48]}),
    "resnet": ("resnet10t", {"channels": [16, 24, 32, 48], "stem_width": 8}),
}


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="session")
def tiny_onnx(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(tiny.module, tiny.spec, tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="session")
def tiny_traced(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As PyTorch's exporter writes it."""
    return export_onnx(tiny.module, tiny.spec, tmp_path_factory.mktemp("onnx") / "traced.onnx", fold=False)


@pytest.fixture(scope="session")
def network_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one of `NETWORKS`, in timm's form, with random weights that leave no part without effect."""

    @cache
    def write(name: str) -> Path:
        timm = pytest.importorskip("timm")
        import torch
        from safetensors.torch import save_file

        architecture, arguments = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(architecture, num_classes=0, **arguments)
            for parameter_name, value in model.named_parameters():
                if "gamma" in parameter_name:
                    torch.nn.init.uniform_(value, 0.2, 0.5)
                elif parameter_name.endswith("weight") and value.dim() == 1:
                    torch.nn.init.uniform_(value, 0.7, 1.3)
                elif value.dim() == 1:
                    torch.nn.init.normal_(value, std=0.05)
        folder = tmp_path_factory.mktemp(name) / name
        folder.mkdir()
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
        cfg = {"input_size": [3, TINY_PX, TINY_PX], "mean": [0.5] * 3, "std": [0.5] * 3}
        config = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "pretrained_cfg": cfg}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture(scope="session")
def network(network_folder: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    """One of `NETWORKS`."""
    return cache(lambda name: load_model(str(network_folder(name))))


@pytest.fixture(scope="session")
def network_onnx(
    network: Callable[[str], LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Its full-precision graph, by the older exporter, which is faster."""

    @cache
    def write(name: str) -> Path:
        model = network(name)
        path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        return export_onnx(model.module, model.spec, path, dynamo=False)

    return write


@pytest.fixture(scope="session")
def calibration() -> list[NDArray[np.uint8]]:
    """Five batches of smooth random tiles: a coarse random pattern, enlarged."""
    coarse = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 8, 3), dtype=np.uint8)
    return list(coarse.repeat(4, axis=2).repeat(4, axis=3))


@pytest.fixture(scope="session")
def held_out() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(2).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)
