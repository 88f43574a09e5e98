"""A target as an export sees it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.cli import require_module
from atlas_edge.export.steps import Steps
from atlas_edge.manifest import Execution, Manifest
from atlas_edge.quantize import backend as quantize
from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.paths import FLOAT
from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import Precision, Target

if TYPE_CHECKING:
    from torch import nn

    from atlas_edge.export.config import ExportConfig

QUANTIZED = (Precision.INT8, Precision.FP8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """Whether a target can be built here, and run here, and why not."""

    target: str
    build: bool
    run: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a network is brought to a precision.

    Attributes:
        path: One of those in `quantize.paths`; None where the target cannot have the precision.
        reason: Why it is not the better way, or none.
    """

    path: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The outcome of the build step.

    Attributes:
        execution: How a runtime loads it, for the manifest.
        details: What is worth reporting of the build (an engine's size and build time).
        not_run: Why the deployed file itself was not run here; None where it was.
        parts: What the backend needs in order to finish the bundle.
    """

    execution: Execution
    details: dict[str, Any] = field(default_factory=dict)
    not_run: str | None = None
    parts: Any = None


class ExportBackend(quantize.Backend):
    """A backend of `atlas-export`. The methods here suit a target whose files are opened as they are written.

    Attributes:
        builds_with: Modules that every build needs, beside PyTorch, timm and ONNX.
        packaged: Precisions that a package for any workstation has of it, the most exact first.
        packaged_portable: Those that it has in a portable form, too: where that is the faster one on some machines.
    """

    builds_with: tuple[str, ...] = ()
    packaged: tuple[Precision, ...] = ()
    packaged_portable: tuple[Precision, ...] = ()

    def modules(self, precision: Precision) -> tuple[str, ...]:
        """Modules that a build in this precision needs, beside PyTorch, timm and ONNX."""
        return self.builds_with

    def check(self, config: "ExportConfig") -> None:
        """Refuse what cannot be built here, before any work.

        Raises:
            RuntimeMissing: A library or device that it needs is not here.
            UsageError: An option that the target lacks.
        """
        for module in ("torch", "timm", "onnx", "onnxruntime", "sklearn", *self.modules(config.precision)):
            require_module(module, extra="torch")

    def check_network(self, config: "ExportConfig", module: "nn.Module") -> None:
        """Refuse what cannot be done with this network, before any tile is computed.

        Raises:
            UsageError: An option that the network cannot have.
        """

    def way(self, precision: Precision, module: "nn.Module") -> Way:
        """How the default recipe would bring a network to a precision; nothing is computed."""
        if precision in self.impossible:
            return Way(path=None, reason=self.impossible[precision])
        return self.quantized_way(precision, module) if precision in QUANTIZED else Way(path=FLOAT)

    def quantized_way(self, precision: Precision, module: "nn.Module") -> Way:
        """The same of INT8 and FP8."""
        return Way(path="by its backend")

    def build(self, config: "ExportConfig", job: Job, quantized: Quantized, folder: Path, steps: Steps) -> Built:
        """Write the model files into the bundle.

        Raises:
            RuntimeMissing: Nothing here can build for the target.
            InputError: The graph is refused.
        """
        return Built(execution=self.write(job, quantized, folder))

    def finish(self, folder: Path, manifest: Manifest, built: Built) -> None:
        """Write what needs the manifest, which itself is written after."""

    def next_command(self, folder: Path) -> str:
        """What a user would do next with a bundle."""
        return f"atlas-bench speed {folder}   # on the workstation"

    def ability(self, installed: Collection[str], *, gpu: bool) -> Ability:
        """What this machine can do.

        Args:
            installed: Importable modules.
            gpu: Whether it has an NVIDIA GPU.
        """
        return Ability(
            target=self.target.value,
            build={"torch", "timm", "onnx", *self.builds_with} <= set(installed),
            run=runtime_of(self.target).module in installed,
        )


def backend_of(target: Target) -> ExportBackend:
    """The backend of a target."""
    found = quantize.backend_of(target)
    assert isinstance(found, ExportBackend), target
    return found
