"""A small network of every architecture kind, with random weights, to build engines of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.models.students import find_student
from atlas_edge.models.timm_config import CONFIG, WEIGHTS
from atlas_edge.models.timm_folder import with_layers

# Of LayerScale, as encoder_table has it: smaller ones leave blocks of random weights without a say.
_SCALE = 0.1
_SMALL = {"img_size": 112, "depth": 2}
_MEAN, _STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_VIT = "vit_small_patch16_224"
# Kind -> timm's architecture and what it is built from.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (_VIT, {**_SMALL, "init_values": _SCALE}),
    "registers, average pooling": (_VIT, {**_SMALL, "reg_tokens": 4, "class_token": False, "global_pool": "avg"}),
    "gated": (_VIT, {**_SMALL, "mlp_layer": "SwiGLUPacked", "act_layer": "silu", "init_values": _SCALE}),
    "qk-norm": (_VIT, {**_SMALL, "qk_norm": True}),
    "pre-norm": (_VIT, {**_SMALL, "pre_norm": True}),
    "rotary (DINOv3)": ("vit_small_patch16_dinov3", {**_SMALL, "init_values": _SCALE}),
    "EVA-02": ("eva02_small_patch14_224", _SMALL),
    "BEiT": ("beit_base_patch16_224", _SMALL),
    "Swin": ("swin_tiny_patch4_window7_224", {"depths": [2, 2]}),
    "CNN (ResNet-18)": ("resnet18", {}),
}
PATCH_8 = "atlas2-s, patch 8"


def kinds() -> tuple[str, ...]:
    """Names of all kinds."""
    return (*KINDS, PATCH_8)


def load_kind(name: str, folder: Path) -> LoadedModel:
    """Build a kind as `atlas-export` would load it, from a model folder.

    Args:
        name: One of `kinds()`.
        folder: Where the model folder goes.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    architecture, arguments = KINDS[name] if name in KINDS else _patch_8()
    place = folder / "-".join(name.split())
    place.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=0, **with_layers(arguments, place / CONFIG))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, place / WEIGHTS)
    config: Mapping[str, Any] = {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, *[arguments.get("img_size", 224)] * 2], "mean": _MEAN, "std": _STD},
    }
    (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return load_model(str(place))


def _patch_8() -> tuple[str, dict[str, Any]]:
    student = find_student("atlas2-s", patch=8, registers=None)
    return student.architecture, {**student.shape(), **_SMALL, "init_values": _SCALE}
