"""The tensors of somebody else's file: safetensors, or a pickled checkpoint read with `weights_only=True`.

This is the one place that opens a pickle. `torch.load` then builds tensors and plain containers only and refuses
everything else; such a file is read once, to be written anew as safetensors.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.timm_config import WEIGHTS
from atlas_edge.models.timm_folder import timm_and_torch

if TYPE_CHECKING:
    from torch import Tensor

_PICKLED = (".bin", ".pth", ".pt", ".ckpt", ".torch")
# What training scripts put the weights under; the average that a student is evaluated by comes first.
_WRAPPERS = ("teacher", "state_dict", "model", "module")
# The first layer, in the names of timm and DINOv2, and of transformers: what stands before it stands before all.
_FIRST_LAYERS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
# Of DINOv2's training, which no encoder has.
_HEADS = ("dino_head.", "ibot_head.", "dino_loss.", "ibot_patch_loss.")
_MOST_WRAPPED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors of one encoder.

    Attributes:
        path: The file that holds them, the first one of several.
        tensors: By name, without what stood before all names.
        aside: Names of tensors that were left aside.
    """

    path: Path
    tensors: "dict[str, Tensor]"
    aside: tuple[str, ...]


def find_weights(path: Path) -> tuple[Path, ...]:
    """The file or files that hold the weights: of a folder its safetensors, or else its one pickled checkpoint.

    Raises:
        InputError: There are none, or several pickled ones.
        UsageError: No such file or folder.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise UsageError(f"{path} is neither a file nor a folder", hint="give a checkpoint, or the folder that has it")
    stored = sorted(path.glob("*.safetensors"))
    if stored:
        return (path / WEIGHTS,) if path / WEIGHTS in stored else tuple(stored)
    pickled = sorted(file for file in path.iterdir() if file.suffix in _PICKLED)
    if len(pickled) == 1:
        return tuple(pickled)
    what = f"{len(pickled)} checkpoints ({pickled[0].name}, …)" if pickled else "no weights"
    raise InputError(f"{path} holds {what}, expected one checkpoint", hint="give the file itself")


def read_checkpoint(path: Path, *, prefix: str = "", aside: tuple[str, ...] = ()) -> Checkpoint:
    """Read the tensors of an encoder.

    Args:
        path: A file, or a folder with one checkpoint.
        prefix: What stands before the encoder's tensors; found by its first layer when empty.
        aside: Prefixes of tensors that are no part of the encoder.

    Raises:
        InputError: The file cannot be read, holds more than tensors, no vision transformer, or tensors besides the
            encoder's that nobody named.
        UsageError: No such file or folder.
    """
    files = find_weights(path)
    found: dict[str, Tensor] = {}
    for file in files:
        found |= _read_safetensors(file) if file.suffix == ".safetensors" else _unwrapped(_read_pickled(file), file)
    if not prefix:
        prefix = _prefix(found, files[0])
    tensors = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    left = [name for name in found if not name.startswith(prefix)]
    stray = [name for name in left if not name.startswith((*aside, *_HEADS))]
    if stray:
        raise InputError(
            f"{files[0]}: {stray[0]} is no part of the encoder, whose tensors are called {prefix}…",
            hint="give --as with the name of the known encoder that it is, or save the encoder's tensors alone",
        )
    if not tensors:
        raise InputError(f"{files[0]} holds no tensor called {prefix}…", hint="check the name given to --as")
    return Checkpoint(path=files[0], tensors=tensors, aside=tuple(left))


def _read_safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # the reader of a foreign file: whatever it raises is about that file
        raise InputError(
            f"{path} is no readable safetensors file ({error})", hint="it may be truncated: copy it again"
        ) from error


def _read_pickled(path: Path) -> Any:
    _, torch = timm_and_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old forms; errors are raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a foreign file: whatever it raises is about that file
        said = str(error) if any(map(str.isalpha, str(error))) else repr(error)  # a KeyError's is the key alone
        first = next(line.strip() for line in said.splitlines() if line.strip())
        raise InputError(
            f"{path} cannot be read as a file of tensors alone: {first[:300]}",
            hint="it may be truncated, or hold Python objects, which are never loaded: save its state_dict alone",
        ) from error


def _unwrapped(found: Any, path: Path) -> "dict[str, Tensor]":
    _, torch = timm_and_torch()
    for _ in range(_MOST_WRAPPED):
        if not isinstance(found, Mapping) or not found:
            break
        stray = [name for name, value in found.items() if not _is_plain(torch, value)]
        if not stray:
            return {str(name): tensor for name, tensor in found.items()}
        wrapped = [name for name in _WRAPPERS if isinstance(found.get(name), Mapping)]
        if not wrapped:
            raise InputError(
                f"{path}: {str(stray[0])[:80]} is no tensor, and no {', '.join(_WRAPPERS)} holds the weights",
                hint="save the state_dict of the encoder alone",
            )
        found = found[wrapped[0]]
    raise InputError(f"{path} holds no table of tensors", hint="save the state_dict of the encoder")


def _is_plain(torch: Any, value: Any) -> bool:
    return torch.is_tensor(value) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _prefix(found: "Mapping[str, Tensor]", path: Path) -> str:
    leads = sorted({name.removesuffix(first) for name in found for first in _FIRST_LAYERS if name.endswith(first)})
    if not leads:
        raise InputError(
            f"{path} holds no patch embedding ({' or '.join(_FIRST_LAYERS)}): it is no known vision transformer",
            hint="give a checkpoint under timm's, DINOv2's or transformers' names",
        )
    if len(leads) > 1:
        raise InputError(
            f"{path} holds {len(leads)} vision transformers: {', '.join(leads)}", hint="save the one that is meant"
        )
    return leads[0]
