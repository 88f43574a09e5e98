"""What differs between targets where bundles are made: one `Backend` a target, imported when it is first asked for.

The backends lie in `atlas_edge.export.backends`; here is what choosing recipes and plans knows of them.
"""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Encoder
from atlas_edge.errors import RuntimeMissing
from atlas_edge.manifest import Execution
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.runtimes.tensorrt_library import TensorRTLibrary
from atlas_edge.spec import Precision, Target

# Name of a target -> module:attribute of its backend.
BACKENDS = {
    "onnx": "atlas_edge.export.backends.onnx:BACKEND",
    "openvino": "atlas_edge.export.backends.openvino:BACKEND",
    "tensorrt": "atlas_edge.export.backends.tensorrt:ENTERPRISE_BACKEND",
    "tensorrt-rtx": "atlas_edge.export.backends.tensorrt:RTX_BACKEND",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is made, and of what.

    Attributes:
        model: The network in PyTorch.
        graph: Its full-precision ONNX with a dynamic batch.
        calibration: Batches of tiles, `(B, H, W, 3)` uint8.
        precision: Number format of the compute-heavy layers.
        recipe: How INT8 or FP8 is made; None for floating point, and for nothing else.
        ranges: Ranges that the model was trained to be rounded in; None where there are none.
        batch: The one batch size of the graph, or None for a dynamic one.
        threads: Inference threads; the runtime's own choice when None.
        last_use: Nobody runs the network after it is quantized: its weights may go as soon as they are folded.
    """

    model: LoadedModel
    graph: Path
    calibration: list[NDArray[np.uint8]]
    precision: Precision = Precision.FP32
    recipe: Recipe | None = None
    ranges: Path | None = None
    batch: int | None = None
    threads: int | None = None
    last_use: bool = False

    @property
    def portable(self) -> bool:
        """Whether every processor computes the file alike; see `Recipe.portable`."""
        return self.precision is Precision.INT8 and self.recipe is not None and self.recipe.portable

    def some_tiles(self, count: int) -> NDArray[np.uint8]:
        """The first `count` calibration tiles."""
        return np.concatenate(self.calibration)[:count]

    def full_graph(self, scratch: Path) -> Path:
        """Full-precision ONNX with the batch that was asked for."""
        if self.batch is None:
            return self.graph
        from atlas_edge.models.graph import export_onnx

        return export_onnx(self.model.module, self.model.spec, scratch / "fixed.onnx", batch=self.batch)

    def traced_graph(self, scratch: Path) -> Path:
        """Full-precision ONNX as PyTorch's exporter writes it, for a program that is compared with ours."""
        from atlas_edge.models.graph import export_onnx

        return export_onnx(self.model.module, self.model.spec, scratch / "traced.onnx", fold=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A network in its precision.

    Attributes:
        model: What the backend writes into the bundle: a file, or a model in memory.
        beside: The same in FP16, to be built beside an INT8 or FP8 engine.
        quantization: Recipe and coverage, for the manifest; None where nothing was quantized.
    """

    model: Any
    beside: Path | None = None
    quantization: dict[str, Any] | None = None


class Backend(ABC):
    """A target, as far as its bundles are made.

    Attributes:
        target: What its bundles are built for.
        recipe: Its INT8 recipe.
        impossible: Precisions that it cannot have, and what to take instead.
        symmetric: Activations are rounded from -max to max, as in the ranges that a model is trained to.
        library: What builds its engines; None for a target whose files are opened as they are.
    """

    target: Target
    recipe: Recipe
    impossible: ClassVar[Mapping[Precision, str]] = {}
    symmetric = True
    library: TensorRTLibrary | None = None

    def default_recipe(self, precision: Precision) -> Recipe:
        """How INT8 or FP8 is made when nothing else is asked for."""
        return self.recipe

    def float_precisions(self) -> tuple[Precision, ...]:
        """Half-precision formats that it computes in on this machine, the one to prefer first."""
        return ()

    @abstractmethod
    def quantize(self, job: Job, scratch: Path) -> Quantized:
        """Bring the graph to the precision that was asked for.

        Raises:
            RuntimeMissing: The quantization library is not installed.
            InputError: The graph cannot be brought to that precision.
        """

    @abstractmethod
    def write(self, job: Job, quantized: Quantized, folder: Path) -> Execution:
        """Write the model files into a folder; returns how a runtime loads them."""

    @abstractmethod
    def open_reference(self, job: Job) -> Encoder:
        """The full-precision encoder, in the CPU runtime of the target."""

    @abstractmethod
    def open_written(self, job: Job, folder: Path) -> Encoder:
        """The encoder in a folder; for an engine that cannot run here, the very ONNX that it was built from."""


def backend_of(target: Target) -> Backend:
    """The backend of a target."""
    found: Backend = pkgutil.resolve_name(BACKENDS[target])
    return found


def measured_backend(target: Target) -> Backend:
    """The backend of a target whose plans can be measured here.

    Raises:
        RuntimeMissing: A TensorRT target: its engines are not run by a search.
    """
    backend = backend_of(target)
    if backend.library is not None:
        raise RuntimeMissing(
            f"a search measures plans on the target, and {target} engines need their GPU",
            hint="search for onnx (the same Q/DQ graph), or compare with atlas-bench beside the GPU",
        )
    return backend
