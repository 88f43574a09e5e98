"""Ranges that quantization-aware distillation found, kept beside a model's weights for its ONNX and engines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from atlas_edge.errors import AtlasError, InputError
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.system.atomic import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "ranges.safetensors"
_INPUT, _WEIGHT, _RECIPE = ".input", ".weight", "recipe"
_AGAIN = "train it again: atlas-quantize finetune"


def ranges_of(model: str) -> Path | None:
    """The file of ranges in a model folder; None where there is none."""
    path = Path(model.removeprefix("local-dir:")) / FILE
    return path if path.is_file() else None


def save_ranges(quantized: "nn.Module", path: Path, recipe: Recipe) -> None:
    """Write `NAME.input`, the largest input that INT8 holds, and `NAME.weight` `(O,)`, the largest weights.

    Args:
        quantized: With ModelOpt quantizers of 8 bits, none of which scales its input first.
        path: File to write.
        recipe: What training began with: it says which layers stay in floating point.

    Raises:
        AtlasError: A quantizer scales its input first: the file cannot hold that, and weights without it are wrong.
    """
    from safetensors.torch import save

    tensors = {}
    for name, layer in quantized.named_modules():
        if hasattr(layer, "weight_quantizer") and layer.weight_quantizer.is_enabled:
            if layer.input_quantizer.pre_quant_scale is not None:
                raise AtlasError(f"{name} is smoothed by a factor that a model folder cannot hold")
            tensors[name + _INPUT] = layer.input_quantizer.amax.detach().float().reshape(()).clone()
            tensors[name + _WEIGHT] = layer.weight_quantizer.amax.detach().float().flatten().clone()
    write_atomic(path, save(tensors, {_RECIPE: recipe.model_dump_json()}))


def recipe_of_ranges(path: Path) -> Recipe:
    """The recipe that training began with.

    Raises:
        InputError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return Recipe.model_validate_json(file.metadata()[_RECIPE])
    except (SafetensorError, OSError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint=_AGAIN) from error


def quantize_with_ranges(module: "nn.Module", path: Path) -> "nn.Module":
    """A copy of an encoder that rounds as it was trained to: the layers of the file, in their ranges.

    Raises:
        InputError: The file cannot be read, or is of another network.
    """
    from atlas_edge.quantize.onnx.fakequant import insert_quantizers

    ranges = _read(path)
    layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "weight")}
    for name, (_, largest) in ranges.items():
        if name not in layers or len(largest) != len(layers[name].weight):
            raise InputError(f"{path} does not fit the model: {name}", hint=_AGAIN)
    kinds = ("Linear", "Conv2d")
    rest = [name for name, layer in layers.items() if type(layer).__name__ in kinds and name not in ranges]
    quantized = insert_quantizers(module, Recipe(exclude=tuple(name.removeprefix("backbone.") for name in rest)))
    for name, (inputs, largest) in ranges.items():
        layer: Any = quantized.get_submodule(name)
        layer.input_quantizer.amax = inputs
        layer.weight_quantizer.amax = largest.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return quantized


def _read(path: Path) -> "dict[str, tuple[Tensor, Tensor]]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        names = sorted(name.removesuffix(_INPUT) for name in tensors if name.endswith(_INPUT))
        ranges = {name: (tensors[name + _INPUT], tensors[name + _WEIGHT]) for name in names}
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
    values = [value for pair in ranges.values() for value in pair]
    if not values or not all(bool((value > 0).all() and value.isfinite().all()) for value in values):
        raise InputError(f"{path} holds no usable ranges", hint=_AGAIN)
    return ranges
