"""`--target auto`: every variant that this machine can build, each through the gate, into one package."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas_edge.errors import AtlasError, GateFailed, UsageError
from atlas_edge.export.backends.base import backend_of
from atlas_edge.export.config import ExportConfig
from atlas_edge.export.packing.pack import Packed, complete_package
from atlas_edge.export.pipeline import ExportResult, export_bundle
from atlas_edge.export.report.summary import gate_line
from atlas_edge.export.steps import Steps
from atlas_edge.export.tile_sets import TileSets, open_tile_sets
from atlas_edge.package.manifest import VARIANTS, LeftOut
from atlas_edge.spec import Precision, Target
from atlas_edge.system.atomic import atomic_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoResult:
    """What was built.

    Attributes:
        folder: The package.
        packed: What is in it.
        results: Of each export that passed, by variant.
        left_out: What is not in it, and why.
    """

    folder: Path
    packed: Packed
    results: dict[str, ExportResult]
    left_out: tuple[LeftOut, ...]


def auto_configs(**values: Any) -> dict[str, ExportConfig]:
    """The configuration of every variant, by name; the most exact of a target comes first.

    Args:
        values: Fields of `ExportConfig` that hold for all of them.

    Raises:
        UsageError: A value that no variant can have.
    """
    configs: dict[str, ExportConfig] = {}
    # From the most particular target to the one that runs anywhere, which is the order in a package, too.
    for target in reversed(Target):
        for precision in backend_of(target).packaged:
            own = _own(values, target, precision)
            configs[f"{target.value}-{precision.value}"] = ExportConfig(target=target, precision=precision, **own)
        for precision in backend_of(target).packaged_portable:
            own = _own(values, target, precision) | {"portable": True}
            if values.get("portable") is not True:
                name = f"{target.value}-{precision.value}-portable"
                configs[name] = ExportConfig(target=target, precision=precision, **own)
    return configs


def _own(values: dict[str, Any], target: Target, precision: Precision) -> dict[str, Any]:
    """The values without the options that are of other variants alone."""
    engine, integer = backend_of(target).library is not None, precision is Precision.INT8
    kept = {
        "portable": integer and not engine,
        "quantize_attention": integer and engine,
        "merge_tokens": integer,
    }
    return {name: value for name, value in values.items() if kept.get(name, True)}


def buildable(configs: dict[str, ExportConfig]) -> tuple[dict[str, ExportConfig], tuple[LeftOut, ...]]:
    """Those that this machine can build, and why it cannot build the others."""
    found: dict[str, ExportConfig] = {}
    left_out: list[LeftOut] = []
    for name, config in configs.items():
        try:
            backend_of(config.target).check(config)
            found[name] = config
        except UsageError:
            raise
        except AtlasError as error:
            left_out.append(LeftOut(name=name, reason=_line(error)))
    return found, tuple(left_out)


def export_package(
    configs: dict[str, ExportConfig], out: Path, *, steps: Callable[[str], Steps], command: tuple[str, ...]
) -> AutoResult:
    """Build the variants one after the other, on the same tiles, and pack those that pass.

    Args:
        configs: From `auto_configs`.
        out: The package.
        steps: Where the progress of a variant goes, by its name.
        command: The command line, for the manifests.

    Raises:
        UsageError: The folder is taken, or options contradict one another.
        AtlasError: Nothing could be built: the first variant's reason.
        GateFailed: Nothing passed its gate.
    """
    overwrite = next(iter(configs.values())).overwrite
    to_build, missing = buildable(configs)
    left_out, errors = list(missing), list[AtlasError]()
    results: dict[str, ExportResult] = {}
    with atomic_folder(out, marks=(VARIANTS,), overwrite=overwrite) as folder:
        tile_sets = open_tile_sets(next(iter(configs.values())))
        for name, config in to_build.items():
            try:
                results[name] = _export(replace(config, out=folder / name), steps(name), tile_sets, command)
            except UsageError:
                raise
            except AtlasError as error:
                errors.append(error)
                left_out.append(LeftOut(name=name, reason=_line(error)))
                # What missed its gate was written.
                shutil.rmtree(folder / name, ignore_errors=True)
        if not results:
            raise errors[0] if errors else UsageError("nothing can be built here", hint="see atlas-export doctor")
        packed = complete_package(folder, list(results), left_out=left_out)
    return AutoResult(folder=out, packed=packed, results=results, left_out=tuple(left_out))


def _export(config: ExportConfig, steps: Steps, tile_sets: TileSets, command: tuple[str, ...]) -> ExportResult:
    result = export_bundle(config, steps, command=command, tile_sets=tile_sets)
    if not result.gate_open:
        raise GateFailed(gate_line(result) or "gate", hint="calibrate on more tiles")
    return result


def _line(error: AtlasError) -> str:
    return " ".join(error.message.split())
