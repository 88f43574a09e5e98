"""Where this process computes, and in which precision."""

import os

import torch

from atlas_edge.errors import UsageError
from atlas_edge.system.hardware import cpu


def own_device() -> torch.device:
    """The GPU of this process among those of its machine, which `accelerate launch` numbers; the CPU without one.

    Raises:
        UsageError: The machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):
        return torch.device("cpu")
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise UsageError(
            f"process {number + 1} of this machine has no GPU of its own: there are {gpus}",
            hint=f"accelerate launch --num_processes {gpus}, times the number of machines",
        )
    return torch.device("cuda", number)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to `bf16` or `fp16`; none for `fp32`, nor for `bf16` on a processor that would imitate it."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=precision != "fp32" and not imitated(device, precision))


def imitated(device: torch.device, precision: str) -> bool:
    """Whether a precision is bfloat16 on a processor without it, where a step takes many times as long."""
    return precision == "bf16" and device.type == "cpu" and not cpu().bfloat16


IMITATED = "this processor computes no bfloat16: the student trains in float32, as with --precision fp32"


def half_type(device: torch.device) -> torch.dtype:
    """The 16-bit type that a device computes in: bfloat16, or float16 on a GPU older than that."""
    bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bfloat16 else torch.float16
