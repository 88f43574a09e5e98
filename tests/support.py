"""What tests import from one another."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import psutil
    from numpy.typing import NDArray
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
TINY_PX = 32

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]

# As the tests were started: libraries that a test imports (scikit-learn, timm) set variables of their own.
_STARTED_WITH = dict(os.environ)


def command_environment(**environment: str) -> dict[str, str]:
    """What our commands are run with."""
    return {**_STARTED_WITH, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120", **environment}


def heed_ctrl_c() -> None:
    """For `preexec_fn`: a test run started in the background has its children ignore SIGINT, as it does itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: "psutil.Process", *, within_s: float = 20) -> bool:
    """Whether a process ends in time: it need not be a child, nor need anybody have asked for its exit code."""
    import psutil

    deadline = time.monotonic() + within_s
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def check_ends_with(parent: "subprocess.Popen[bytes]", child: "psutil.Process") -> None:
    """Kill a process and see that its child ends, too."""
    import psutil

    parent.kill()
    parent.wait()
    try:
        assert ended(child)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which stands for a full disk; POSIX only."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_timm_folder(
    folder: Path,
    architecture: str,
    *,
    config_args: dict[str, Any] | None = None,
    cfg: dict[str, Any] | None = None,
    num_classes: int = 0,
    top: dict[str, Any] | None = None,
    **arguments: Any,
) -> Path:
    """A model folder in timm's form with random weights, none of them at its initial zeros and ones.

    Args:
        folder: Made here.
        architecture: timm architecture.
        config_args: `model_args` of `config.json`; `arguments` when None.
        cfg: What `pretrained_cfg` holds beside mean, deviation, size and classifier, or None for what it lacks.
        num_classes: Of a classifier that is stored, too.
        top: What the top of `config.json` holds besides.
        arguments: What the network is built with.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=num_classes, **arguments)
        for name, value in network.state_dict().items():
            if value.is_floating_point() and not name.endswith(("running_var", "relative_coords_table")):
                value += (0.02 if value.ndim > 2 else 0.2) * torch.randn_like(value)
    folder.mkdir(parents=True)
    save_file({name: value.clone() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    side = arguments.get("img_size", network.pretrained_cfg["input_size"][-1])
    stated = {
        "mean": [0.5, 0.4, 0.6],
        "std": [0.2, 0.25, 0.3],
        "input_size": [3, side, side],
        "num_classes": num_classes,
        "classifier": network.pretrained_cfg["classifier"],
    }
    config = {
        "architecture": architecture,
        "num_classes": num_classes,
        "model_args": arguments if config_args is None else config_args,
        "pretrained_cfg": {name: value for name, value in (stated | (cfg or {})).items() if value is not None},
    }
    (folder / "config.json").write_text(json.dumps(config | (top or {})))
    return folder


def timm_embedding(
    folder: Path, tiles: "NDArray[np.uint8]", *, normalise: "Callable[[Tensor], Tensor] | None" = None, **arguments: Any
) -> "NDArray[np.float32]":
    """What timm itself returns for `(B, H, W, 3)` uint8 tiles: its own loader, its own `model(x)`.

    Args:
        folder: In timm's form.
        tiles: Of the network's size.
        normalise: How; by mean and deviation as timm reads them when None.
        arguments: For `timm.create_model`.
    """
    import timm
    import torch

    network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **arguments).eval()
    pixels = torch.from_numpy(tiles)
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = normalise(pixels) if normalise else (pixels.permute(0, 3, 1, 2) / 255.0 - mean) / std
    with torch.inference_mode():
        found: NDArray[np.float32] = network(images).numpy()
    return found
