"""Other people's checkpoints under timm's names: DINOv2's own, and transformers' ViT and DINOv2.

The functions change names and shapes only, and account for every tensor.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_edge.errors import InputError
from atlas_edge.models.timm_config import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

Form = Literal["timm", "DINOv2", "transformers"]
PREPROCESSOR = "preprocessor_config.json"
# Learnt for masked patches, which only training has.
_MASK = ("mask_token", "embeddings.mask_token")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers")


class TransformersConfig(BaseModel):
    """What `config.json` of a ViT or DINOv2 in transformers' form says of its shape; defaults are transformers' own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str
    hidden_size: int = Field(768, gt=0, le=65536)
    num_hidden_layers: int = Field(12, gt=0, le=1024)
    num_attention_heads: int = Field(12, gt=0, le=1024)
    intermediate_size: int | None = Field(None, gt=0, le=1 << 20)
    mlp_ratio: float = Field(4, gt=0, le=64)
    image_size: int = Field(224, gt=0, le=16384)
    patch_size: int = Field(16, gt=0, le=1024)
    layer_norm_eps: float | None = Field(None, gt=0, lt=1)
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_register_tokens: int = Field(0, ge=0, le=1024)

    @property
    def is_dinov2(self) -> bool:
        """Whether it has LayerScale, and resamples position embeddings in every call."""
        return self.model_type != "vit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """Tensors under timm's names.

    Attributes:
        form: Whose names they had.
        tensors: By timm's names, contiguous.
        aside: Names of tensors that have no place in the network.
    """

    form: Form
    tensors: "Tensors"
    aside: tuple[str, ...]


def read_transformers(folder: Path) -> TransformersConfig | None:
    """The shape that a transformers folder states; None where `config.json` is absent or of another form.

    Raises:
        InputError: It is of an architecture that is not converted, or holds a value that cannot be.
    """
    path = folder / CONFIG
    found = _json(path)
    if found is None or "architecture" in found or "model_type" not in found:
        return None
    if found["model_type"] not in _MODEL_TYPES:
        raise InputError(
            f"{path} is of model_type {str(found['model_type'])[:80]!r}, which is not converted",
            hint=f"ViT and DINOv2 are: {', '.join(_MODEL_TYPES)}",
        )
    try:
        return TransformersConfig.model_validate({name: value for name, value in found.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {where} is {str(first['input'])[:80]}: {first['msg']}", hint="compare it with the model's card"
        ) from error


def preprocessing(folder: Path) -> dict[str, Any]:
    """`mean`, `std` and `tile_px` that a transformers folder states beside its configuration."""
    found = _json(folder / PREPROCESSOR) or {}
    stated = {"mean": found.get("image_mean"), "std": found.get("image_std")}
    for name in ("crop_size", "size"):
        side = found.get(name)
        side = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side
        if isinstance(side, int):
            stated["tile_px"] = side
            break
    return {name: value for name, value in stated.items() if value is not None}


def model_args(config: TransformersConfig, tensors: "Tensors") -> dict[str, Any]:
    """Arguments of timm for a network in transformers' form.

    Raises:
        InputError: Its activation is not known.
    """
    if config.hidden_act not in _ACTIVATIONS:
        raise InputError(
            f"hidden_act {config.hidden_act!r} is not converted", hint=f"known are {', '.join(_ACTIVATIONS)}"
        )
    width = config.hidden_size
    arguments: dict[str, Any] = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": width,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }
    if not config.is_dinov2:
        arguments["mlp_ratio"] = _ratio(config.intermediate_size or 4 * width, width)
    if config.use_swiglu_ffn and config.is_dinov2:
        first = tensors.get("blocks.0.mlp.fc1.weight")
        if first is None:
            raise InputError("blocks.0.mlp.fc1.weight is missing", hint="the checkpoint is not whole")
        ratio = _ratio(first.shape[0], width)
        arguments |= {"mlp_ratio": ratio, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    elif config.hidden_act != "gelu":
        arguments["act_layer"] = _ACTIVATIONS[config.hidden_act]
    if config.is_dinov2:
        arguments["init_values"] = 1e-5
    if "reg_token" in tensors:
        arguments |= {"reg_tokens": tensors["reg_token"].shape[1], "no_embed_class": True}
    return arguments


def _ratio(hidden: int, width: int) -> float:
    """The ratio whose product with the width, rounded down as timm does it, is `hidden`."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.25) / width


def to_timm(tensors: "Tensors") -> Converted:
    """Give tensors timm's names.

    Raises:
        InputError: A tensor has no place, or one is missing.
    """
    if any(name.startswith("embeddings.") for name in tensors):
        return _from_transformers(tensors)
    if "register_tokens" in tensors or "mask_token" in tensors:
        return _from_dinov2(tensors)
    return Converted(form="timm", tensors=_whole(tensors), aside=())


def resample_positions(tensors: "Tensors", *, side: int, prefix: int) -> None:
    """Bring position embeddings to a grid of `side` patches as transformers' DINOv2 does in every call, in place."""
    from torch.nn import functional

    positions = tensors["pos_embed"].float()
    stored = round((positions.shape[1] - prefix) ** 0.5)
    if stored == side:
        return
    patches = positions[:, prefix:].reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    import torch

    tensors["pos_embed"] = torch.cat([positions[:, :prefix], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _from_dinov2(tensors: "Tensors") -> Converted:
    """DINOv2's names; blocks may lie in chunks (`blocks.0.3`), as they are trained on several devices."""
    taken = dict(tensors)
    aside = tuple(name for name in _MASK if taken.pop(name, None) is not None)
    _fold_class_position(taken, "register_tokens")
    renamed = {}
    for name, tensor in taken.items():
        timm_name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        timm_name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", timm_name))
        renamed[timm_name] = tensor
    return Converted(form="DINOv2", tensors=_whole(renamed), aside=aside)


_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_INSIDE = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
_QKV = ("query", "key", "value")


def _from_transformers(tensors: "Tensors") -> Converted:
    taken = dict(tensors)
    # The pooler's tanh is for classifiers; encoders are used without it.
    aside = tuple(name for name in tensors if name in _MASK or name.startswith("pooler."))
    for name in aside:
        del taken[name]
    renamed: Tensors = {}
    products: dict[str, dict[str, Tensor]] = {}
    for name, tensor in taken.items():
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        part = re.fullmatch(r"attention\.attention\.(query|key|value)\.(weight|bias)", block[2]) if block else None
        if block and part:
            products.setdefault(f"blocks.{block[1]}.attn.qkv.{part[2]}", {})[part[1]] = tensor
            continue
        timm_name = _OUTSIDE.get(name) if block is None else _inside(block[1], block[2])
        if timm_name is None:
            raise InputError(
                f"{name} has no place in a vision transformer of timm",
                hint="transformers' ViT and DINOv2 are converted; save the encoder without its heads",
            )
        renamed[timm_name] = tensor
    renamed |= {name: _joined(name, parts) for name, parts in products.items()}
    _fold_class_position(renamed, "register_tokens")
    return Converted(form="transformers", tensors=_whole(renamed), aside=aside)


def _inside(block: str, rest: str) -> str | None:
    if rest in _SCALES:
        return f"blocks.{block}.{_SCALES[rest]}"
    layer, _, leaf = rest.rpartition(".")
    return f"blocks.{block}.{_INSIDE[layer]}.{leaf}" if layer in _INSIDE and leaf in ("weight", "bias") else None


def _joined(name: str, parts: "Tensors") -> "Tensor":
    import torch

    missing = [part for part in _QKV if part not in parts]
    if missing:
        raise InputError(f"{name} cannot be joined: {missing[0]} is missing", hint="the checkpoint is not whole")
    return torch.cat([parts[part] for part in _QKV])


def _fold_class_position(tensors: "Tensors", registers: str) -> None:
    """Networks with registers: timm adds no position to any token before the patches, DINOv2 one to the CLS token."""
    found = tensors.pop(registers, None)
    if found is None:
        return
    missing = [name for name in ("cls_token", "pos_embed") if name not in tensors]
    if missing:
        raise InputError(f"{missing[0]} is missing", hint="the checkpoint is not whole")
    tensors["reg_token"] = found
    tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]


def _whole(tensors: "Tensors") -> "Tensors":
    """Each in memory of its own, as safetensors stores them; what has its own already is not copied."""
    found: Tensors = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        alone = alone and tensor.data_ptr() not in places
        places.add(tensor.data_ptr())
        found[name] = tensor.detach() if alone else tensor.detach().clone().contiguous()
    return found


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error!r}", hint="copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read: it holds no table", hint="copy it again")
    return found
