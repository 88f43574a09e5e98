"""The whole state of a run in one safetensors file: a killed run goes on to the same losses, step for step.

Order, views and fresh augmentation are functions of the step number (see `stream`), so the data's position is the
step itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.atomic import write_atomic

NAME = "checkpoint.safetensors"


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], *, step: int, identity: dict[str, object]) -> None:
    """Write the checkpoint beside its final place and rename it: a kill leaves the one before.

    Args:
        folder: Folder of the run.
        tensors: Whole ones: `model.NAME` of student and heads, `average.NAME` of their average,
            `optimiser.NUMBER.NAME` of AdamW's state, `extra.NAME` of what else the run needs.
        step: Steps done.
        identity: What must be the same when the run goes on.
    """
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    contiguous["rng"] = torch.get_rng_state()
    metadata = {"step": str(step), "identity": json.dumps(identity, sort_keys=True)}
    write_atomic(folder / NAME, save(contiguous, metadata))


def load_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, *, identity: dict[str, object]
) -> tuple[int, dict[str, Tensor]]:
    """Restore a run in place.

    Returns:
        Steps done, and the averaged weights.

    Raises:
        UsageError: The checkpoint is of a run with other options, tiles or models.
        InputError: It cannot be read.
    """
    step, stored = read_header(folder)
    changed = sorted(key for key in identity.keys() | stored.keys() if identity.get(key) != stored.get(key))
    if changed:
        found, wanted = stored.get(changed[0]), identity.get(changed[0])
        raise UsageError(
            f"{folder} holds a run with another {changed[0]} ({found!r}, now {wanted!r})",
            hint="give the same options, tiles and models to go on, or add --overwrite to start anew",
        )
    with safe_open(folder / NAME, framework="pt") as file:
        groups: dict[str, dict[str, Any]] = {"model": {}, "average": {}, "optimiser": {}}
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            group, _, rest = name.partition(".")
            if group in groups:
                groups[group][rest] = file.get_tensor(name)
        torch.set_rng_state(file.get_tensor("rng"))
    model.load_state_dict(groups["model"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimiser"].items():
        number, _, field = name.partition(".")
        state.setdefault(int(number), {})[field] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, groups["average"]


def load_extra(folder: Path) -> dict[str, Tensor]:
    """The tensors that were saved as `extra`.

    Raises:
        InputError: The checkpoint cannot be read.
    """
    read_header(folder)
    with safe_open(folder / NAME, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("extra.")]  # noqa: SIM118 - safe_open is no mapping
        return {name.removeprefix("extra."): file.get_tensor(name) for name in names}


def read_header(folder: Path) -> tuple[int, dict[str, object]]:
    """Steps done, and the identity of the run.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with safe_open(folder / NAME, framework="pt") as file:
            metadata = file.metadata()
        if "config" in metadata and "identity" not in metadata:
            raise InputError(
                f"{folder / NAME} is of an earlier atlas-edge", hint="add --overwrite to start the run anew"
            )
        return int(metadata["step"]), dict(json.loads(metadata["identity"]))
    except (SafetensorError, KeyError, ValueError, OSError, TypeError) as error:
        raise InputError(
            f"{folder / NAME} cannot be read: {error}", hint="add --overwrite to start the run anew"
        ) from error
