"""The network of a model folder, built and loaded by timm itself, so that it is timm's own.

Nothing is unpickled and no code of a folder runs: weights are safetensors, the architecture must be one that the
installed timm knows, and of `model_args` only what the architecture's own constructors take is handed on, layers by
names from a list.
"""

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.models.timm_config import CONFIG, WEIGHTS, TimmConfig, import_command
from atlas_edge.system.interrupts import held_interrupts

if TYPE_CHECKING:
    from torch import nn

# Constructors take these, a model folder has no say in them.
_NOT_SHAPING = frozenset({"self", "args", "kwargs", "cfg", "device", "dtype"})
_BY_TIMM = frozenset({"drop_rate", "drop_path_rate", "global_pool", "in_chans", "num_classes"})
# The size is fixed: with these, position embeddings would be resampled in every call.
_DYNAMIC = ("dynamic_img_size", "dynamic_img_pad")
_LONGEST = 300
_RESPELT = {"quickgelu": "quick_gelu", "gelutanh": "gelu_tanh", "leakyrelu": "leaky_relu"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A loaded network.

    Attributes:
        network: timm model without its classifier, in eval mode.
        tile_px: Side of the square input that it was built for.
        assumptions: What its files do not say and was taken for granted, one sentence each.
    """

    network: "nn.Module"
    tile_px: int
    assumptions: tuple[str, ...]


def load_backbone(config: TimmConfig, *, tile_px: int | None = None) -> Backbone:
    """Build the network of a model folder and load its weights, as `timm.create_model("local-dir:…")` does.

    Args:
        config: From the folder.
        tile_px: Build it for tiles of this side, with position embeddings resampled; its own side when None.

    Raises:
        InputError: timm cannot build it, or the weights are missing, damaged or of another network.
        RuntimeMissing: PyTorch or timm is not installed.
    """
    timm, _ = timm_and_torch()
    if not has_architecture(config.architecture):
        raise InputError(
            f"{config.path} names architecture {config.architecture!r}, which timm {timm.__version__} does not have",
            hint="pip install --upgrade timm",
        )
    weights = config.path.parent / WEIGHTS
    shapes = _weight_shapes(weights)
    taken = _constructor_arguments(timm, config.architecture)
    arguments = _checked_arguments(config, taken)
    arguments["num_classes"] = _classes(timm, config, shapes)
    sized = "img_size" in taken
    if sized and tile_px is not None:
        arguments["img_size"] = tile_px
    elif sized and any(config.arguments.get(name) for name in _DYNAMIC):
        arguments.setdefault("img_size", config.stated.input_size[-1])
    network, assumptions = _load(timm, config, arguments, shapes, sized=sized)
    _check_whole(network, weights, shapes)
    # Some networks of older timm go back to average pooling unless it is named.
    pooling = {name: value for name, value in arguments.items() if name == "global_pool"}
    try:
        network.reset_classifier(0, **pooling)
    except Exception as error:
        raise InputError(
            f"{config.path}: the classifier of {config.architecture} cannot be taken off: {error}",
            hint="choose another architecture",
        ) from error
    side = _side(config, network) if tile_px is None or sized else tile_px
    stated, patch = config.stated.input_size[-1], patch_side(network)
    if config.arguments.get("dynamic_img_pad") and patch is not None and side % patch:
        raise InputError(
            f"{config.path}: {side} px are no multiple of the patch side {patch} px, and would be padded",
            hint=f"give --tile-px {side // patch * patch + patch}",
        )
    if tile_px is None and side != stated:
        assumptions += (
            f"{CONFIG} says input_size {stated}, timm builds it for {side} px: --tile-px {stated} for the other",
        )
    return Backbone(network=network.eval(), tile_px=side, assumptions=assumptions)


def patch_side(network: "nn.Module") -> int | None:
    """Side of a patch in pixels; None for a network without one square patch embedding."""
    found = getattr(getattr(network, "patch_embed", None) or getattr(network, "embeds", None), "patch_size", None)
    sides = {found} if isinstance(found, int) else set(found or ())
    return int(sides.pop()) if len(sides) == 1 else None


def has_architecture(name: str) -> bool:
    """Whether the installed timm has an architecture.

    Raises:
        RuntimeMissing: PyTorch or timm is not installed.
    """
    timm, _ = timm_and_torch()
    try:
        return bool(timm.is_model(name))
    except ValueError:
        return False


def with_layers(arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`model_args` with the classes that names of layers stand for: `silu`, `torch.nn.SiLU`, `SwiGLUPacked`.

    Args:
        arguments: As a folder or the table of known encoders has them.
        path: The file that they come from, for errors.

    Raises:
        InputError: A layer is not known, or is of a kind that a name cannot stand for.
    """
    return {name: _layer(path, name, value) for name, value in arguments.items()}


def timm_and_torch() -> tuple[Any, Any]:
    """The two modules, imported at first use.

    Raises:
        RuntimeMissing: One is not installed.
    """
    try:
        with held_interrupts():
            import timm
            import torch
    except ImportError as error:
        raise RuntimeMissing(
            f"a full-precision model needs PyTorch and timm: {error}", hint="pip install 'atlas-edge[torch]'"
        ) from error
    return timm, torch


def _weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    if not path.is_file():
        pickled = next(iter(sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt*"))), None)
        if pickled is not None:
            raise InputError(
                f"{path} is missing, there is {pickled.name}; pickled checkpoints are never loaded",
                hint=f"{import_command(pickled)} converts it once, where you trust its source",
            )
        raise InputError(
            f"{path} is missing", hint="save the weights as safetensors; pickled checkpoints are never loaded"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the reader of a foreign file: whatever it raises is about that file
        raise InputError(
            f"{path} is no readable safetensors file ({error})", hint="it may be truncated: copy it again"
        ) from error


def _constructor_arguments(timm: Any, architecture: str) -> frozenset[str]:
    """What the networks (or their configurations) in the architecture's own file of timm are made from."""
    from torch import nn

    module = sys.modules[timm.models.model_entrypoint(architecture).__module__]
    classes = (value for value in vars(module).values() if isinstance(value, type))
    shaping = [value for value in classes if issubclass(value, nn.Module) or dataclasses.is_dataclass(value)]
    names = {name for value in shaping for name in inspect.signature(value).parameters}
    return frozenset(name for name in names if not name.startswith("pretrained")) - _NOT_SHAPING


def _checked_arguments(config: TimmConfig, taken: frozenset[str]) -> dict[str, Any]:
    refused = sorted(config.arguments.keys() - taken - _BY_TIMM - set(_DYNAMIC))
    if refused:
        raise InputError(
            f"{config.path}: model_args holds {refused[0]!r}, which does not shape {config.architecture}",
            hint="remove it from model_args",
        )
    arguments = with_layers(config.arguments, config.path)
    return arguments | {name: False for name in _DYNAMIC if arguments.get(name)}


def _layer(path: Path, argument: str, value: Any) -> Any:
    parts = argument.split("_")
    if not isinstance(value, str) or not {"layer", "act"} & set(parts):
        return value
    from timm import layers
    from torch import nn

    name = value.strip("<>' ").rpartition(".")[2].lower()
    try:
        if "mlp" in parts:
            gated = {"mlp": layers.Mlp, "glumlp": layers.GluMlp, "swiglu": layers.SwiGLU}
            return (gated | {"swiglupacked": layers.SwiGLUPacked})[name]
        if "norm" in parts:
            return layers.get_norm_layer(name)
        if "act" in parts:
            return nn.GELU if name == "gelu" else layers.get_act_layer(_RESPELT.get(name, name))
    except Exception as error:
        raise InputError(
            f"{path}: model_args names {argument} {value!r}, which is not known",
            hint="mlp_layer: Mlp, GluMlp, SwiGLU or SwiGLUPacked; act_layer and norm_layer: timm's names, such as silu",
        ) from error
    raise InputError(
        f"{path}: model_args holds {argument}, a part that a name cannot stand for",
        hint="remove it, and name an architecture that has it",
    )


def _classes(timm: Any, config: TimmConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """How many classes the weights' own classifier has: timm loads strictly only where the two agree."""
    registered = timm.models.get_pretrained_cfg(config.architecture)
    names = config.stated.classifier or (registered.classifier if registered else None)
    if names is None:
        return config.num_classes or 0
    first = names if isinstance(names, str) else names[0]
    return shapes.get(f"{first}.weight", (0,))[0]


def _load(
    timm: Any, config: TimmConfig, arguments: dict[str, Any], shapes: dict[str, tuple[int, ...]], *, sized: bool
) -> "tuple[nn.Module, tuple[str, ...]]":
    weights = config.path.parent / WEIGHTS
    try:
        network = _create(timm, config, arguments)
        if getattr(network, "dynamic_img_size", False):
            fixed = {"dynamic_img_size": False} | ({"img_size": config.stated.input_size[-1]} if sized else {})
            network = _create(timm, config, fixed | arguments)
        return network, config.assumptions
    except Exception as error:
        plain = error
    gated = "mlp_layer" not in arguments and any(
        name.endswith("mlp.fc1.weight") and shape[0] == 2 * shapes.get(name.replace("fc1", "fc2"), (0, 0))[-1]
        for name, shape in shapes.items()
    )
    if gated:
        from timm.layers import SwiGLUPacked
        from torch import nn

        try:
            packed = _create(timm, config, {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} | arguments)
            return packed, (*config.assumptions, "the weights hold gated MLPs, which config.json does not name: SwiGLU")
        except Exception as error:
            plain = error
    raise _explained(config, weights, plain)


def _create(timm: Any, config: TimmConfig, arguments: dict[str, Any]) -> "nn.Module":
    """Build and load by timm itself: it resamples position embeddings and renames older weights."""
    stated = {
        "file": str(config.path.parent / WEIGHTS),
        "input_size": config.stated.input_size,
        "fixed_input_size": config.stated.fixed_input_size,
        "num_classes": arguments["num_classes"],
    }
    network: nn.Module = timm.create_model(config.architecture, pretrained=True, pretrained_cfg=stated, **arguments)
    return network


def _explained(config: TimmConfig, weights: Path, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if "loading state_dict" in lines[0]:
        found = InputError(
            f"{weights} does not fit the architecture: {lines[min(1, len(lines) - 1)][:_LONGEST]}",
            hint=f"check architecture and model_args in {CONFIG}",
        )
    else:
        found = InputError(
            f"{config.path}: timm cannot build {config.architecture} from its model_args: {lines[0][:_LONGEST]}",
            hint="compare model_args with timm's documentation of that architecture",
        )
    found.__cause__ = error
    return found


def _check_whole(network: "nn.Module", weights: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    import torch

    state = network.state_dict()
    # Some families are loaded without strictness: what the file lacks would stay random.
    if shapes.keys() < state.keys():
        raise InputError(
            f"{weights} does not fit the architecture: it lacks {min(state.keys() - shapes.keys())}",
            hint=f"check architecture and model_args in {CONFIG}",
        )
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{weights}: {name} holds NaN or infinity", hint="train or save the model again")


def _side(config: TimmConfig, network: "nn.Module") -> int:
    """Side of the tiles that the network was built for; the stated one where it takes any."""
    patches = getattr(network, "patch_embed", None) or getattr(network, "embeds", None)
    found = getattr(patches, "img_size", None) or config.arguments.get("img_size") or config.stated.input_size[1:]
    height, width = (found, found) if isinstance(found, int) else found
    if height != width:
        raise InputError(
            f"{config.path}: the network takes {height} x {width} px, tiles are square",
            hint="give --tile-px, or a square img_size in model_args",
        )
    return int(height)
