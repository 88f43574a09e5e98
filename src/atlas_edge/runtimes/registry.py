"""Which runtime opens the bundles of a target. It is imported when it is first asked for, its library when it opens."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Encoder
from atlas_edge.manifest import Manifest
from atlas_edge.spec import Target

# Name of a target -> module:attribute of its `Runtime`.
RUNTIMES = {
    "onnx": "atlas_edge.runtimes.onnxruntime:RUNTIME",
    "openvino": "atlas_edge.runtimes.openvino:RUNTIME",
    "tensorrt": "atlas_edge.runtimes.tensorrt:ENTERPRISE_RUNTIME",
    "tensorrt-rtx": "atlas_edge.runtimes.tensorrt:RTX_RUNTIME",
}
# Calls of a profile that are not counted.
PROFILE_WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer as executed.

    Attributes:
        name: The runtime's name of it.
        kind: The runtime's type, such as `FullyConnected`.
        implementation: Kernel or provider, such as `brgemm_avx512_I8`.
        width: Last axis of its output, 0 where unknown.
        rank: Axes of its output.
        ms: Median time of a call.
    """

    name: str
    kind: str
    implementation: str
    width: int
    rank: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """All that differs between targets where bundles are opened.

    Attributes:
        title: Name in messages.
        module: Import name of the library that runs bundles.
        extra: Extra of this distribution that installs it.
        open: Opens a verified bundle: `(folder, manifest, threads=…, cache_dir=…, device=…)`, see `open_bundle`.
        int8_notice: What whoever opens an INT8 model file without atlas-edge must know; None where there is nothing.
        layers: Profiles a bundle: `(folder, manifest, tiles, calls, threads)`, the layers in the order of execution;
            None where the library has no such profile.
        other_devices: Names of devices of this machine, beside its own choice, that a bundle may be faster on; empty
            where the library is not installed.
    """

    title: str
    module: str
    extra: str
    open: Callable[..., Encoder]
    int8_notice: str | None = None
    layers: Callable[[Path, Manifest, NDArray[np.uint8], int, int | None], list[Layer]] | None = None
    other_devices: Callable[[], tuple[str, ...]] = tuple


def runtime_of(target: Target) -> Runtime:
    """The runtime of a target."""
    found: Runtime = pkgutil.resolve_name(RUNTIMES[target])
    return found
