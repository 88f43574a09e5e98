"""A training state spread over processes: each keeps its part of weights, gradients, AdamW's moments and average.

PyTorch's FSDP2 (`fully_shard`; Zhao et al., PyTorch FSDP, VLDB 2023, arXiv:2304.11277) gathers one transformer block
at a time for the forward and the backward pass. Checkpoints hold whole tensors, so that a run goes on with any number
of processes.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas_edge.errors import UsageError

if TYPE_CHECKING:
    from atlas_edge.distill.training.state import State
    from atlas_edge.distill.training.student import Distiller


def sharding_wanted() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process and others beside it.

    Raises:
        UsageError: It was asked for the first FSDP.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError(
            "the training state is sharded by the second FSDP only",
            hint="accelerate launch --use_fsdp --fsdp_version 2 -m atlas_edge.distill …",
        )
    return True


def agree(state: "State", device: torch.device) -> None:
    """Give every process the main one's state: each computed its own, and processors round differently.

    Args:
        state: Whole; changed in place.
        device: Of this process, on which the processes are connected.

    Raises:
        UsageError: They have read checkpoints of different steps.
    """
    from torch import distributed

    steps: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(steps, state.step)
    if len(set(steps)) > 1:
        raise UsageError(
            f"the processes found checkpoints of different steps ({', '.join(map(str, steps))})",
            hint="put --out where all machines see it",
        )
    for value in (*state.tensors().values(), *state.model.buffers()):
        # Connected GPUs cannot send what lies in host memory.
        sent = value.detach().to(device).contiguous()
        distributed.broadcast(sent, 0)
        value.detach().copy_(sent)


def shard(state: "State", device: torch.device) -> None:
    """Leave this process its part of a state, and move that to its device.

    Every process calls it with the same whole state in host memory.

    Args:
        state: Changed in place: weights, average and moments become DTensors, split along their first dimension;
            step counts and buffers stay whole.
        device: Of this process.
    """
    groups, moments = _taken_apart(state.optimiser, state.model)
    _shard_model(state.model, device)
    parameters = dict(state.model.named_parameters())
    for group, names in zip(state.optimiser.param_groups, groups, strict=True):
        group["params"] = [parameters[name] for name in names]
    for name, fields in moments.items():
        parameter = parameters[name]
        state.optimiser.state[parameter] = {field: _part(value, parameter) for field, value in fields.items()}
    weights = state.model.state_dict()
    state.average = {name: _part(value, weights[name]) for name, value in state.average.items()}
    state.sharded = True


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors put together again, in host memory.

    Every process calls it with the same names in the same order: each sharded tensor is one collective operation.

    Args:
        tensors: Sharded or whole.
        keep: Whether this process wants the result; without, it gets an empty one.
    """
    from torch.distributed.tensor import DTensor

    found = {}
    for name, value in tensors.items():
        full = value.detach().full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = full.cpu()
    return found


def _taken_apart(
    optimiser: torch.optim.Optimizer, model: nn.Module
) -> tuple[list[list[str]], dict[str, dict[str, Tensor]]]:
    """Parameter names of each group, and moments by parameter name; the optimiser is left without both.

    A parameter that the optimiser still held would keep its whole tensor in memory.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in optimiser.param_groups]
    moments = {names[parameter]: dict(fields) for parameter, fields in optimiser.state.items()}
    for group in optimiser.param_groups:
        group["params"] = []
    optimiser.state.clear()
    return groups, moments


def _shard_model(model: "Distiller", device: torch.device) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in model.backbone.blocks:
        fully_shard(block, mesh=mesh)
    # The loss calls the heads after the model's forward pass: what is in no block stays whole until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _part(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, laid out as a sharded one of its shape; others stay whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(like.device)
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # All processes hold the same values: nothing needs to be sent.
    part: Tensor = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return part
