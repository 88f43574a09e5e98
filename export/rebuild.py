"""`atlas-export rebuild BUNDLE`: build a bundle's engines again, on and for the machine that runs them."""

import shutil
from pathlib import Path

from atlas_edge.bundle import BESIDE, MANIFEST, verify_bundle, write_manifest
from atlas_edge.errors import InputError, UsageError
from atlas_edge.export.backends.base import backend_of
from atlas_edge.export.engine.build import TensorRTChoice, find_tensorrt
from atlas_edge.export.engine.bundle import GRAPH_FILE, build_parts, write_part_manifests
from atlas_edge.export.engine.child import DEFAULTS, EngineOptions
from atlas_edge.manifest import Manifest
from atlas_edge.package.manifest import place_in_package
from atlas_edge.system import hardware
from atlas_edge.system.atomic import atomic_folder
from atlas_edge.system.gpu_probe import GpuProbe, probe_gpu
from atlas_edge.unnamed import command_without_paths


def rebuild_bundle(
    bundle: Path,
    *,
    out: Path | None = None,
    compute_capabilities: tuple[str, ...] = (),
    batch_profile: tuple[int, int, int] | None = None,
    strip_weights: bool | None = None,
    timing_cache: Path | None = None,
    command: tuple[str, ...] = ("atlas-export", "rebuild"),
) -> Manifest:
    """Build the engines of a bundle from the graphs inside it.

    The old bundle stays until the new one is complete.

    Args:
        bundle: Bundle of a TensorRT target.
        out: Where the new bundle goes; in place of the old one when None.
        compute_capabilities: GPU generations; those of this machine's GPUs when empty, else the ones it had.
        batch_profile: Smallest, optimal and largest batch; the ones it had when None.
        strip_weights: Leave weights out of the engines; as it was when None.
        timing_cache: Enterprise TensorRT's build-time measurements.
        command: For the manifest.

    Returns:
        The new manifest.

    Raises:
        UsageError: The bundle is of another target, or a variant of a package that would be rebuilt in place.
        InputError: It holds no graph, or the graph is refused.
        ChecksumError: A file differs from the manifest.
        RuntimeMissing: Neither library can build here.
    """
    manifest = verify_bundle(bundle)
    if out is None and place_in_package(bundle) is not None:
        raise UsageError(
            f"{bundle} is a variant of a package, which would not fit it any more",
            hint="give --out, and pack what comes out with the other variants: atlas-export pack",
        )
    library = backend_of(manifest.target).library
    if library is None:
        raise UsageError(f"{bundle} is built for {manifest.target}, which has no engine to rebuild")
    if not (bundle / GRAPH_FILE).is_file():
        raise InputError(f"{bundle} holds no {GRAPH_FILE} to build from", hint="export the bundle again")
    probe = probe_gpu()
    choice = find_tensorrt(library, probe=probe)
    was = manifest.execution
    stripped = "strip_weights" in was.engine_options if strip_weights is None else strip_weights
    options = EngineOptions(
        compute_capabilities=compute_capabilities or _capabilities(choice, probe, manifest),
        batch_profile=batch_profile or was.batch_profile or DEFAULTS.batch_profile,
        strip_weights=stripped,
        timing_cache=timing_cache,
        float_linears=_float_linears(manifest),
        **{name: name in was.engine_options and getattr(choice.library, name, True) for name in _FLAGS},
    )
    fp16_graph = bundle / BESIDE / GRAPH_FILE
    with atomic_folder(out or bundle, marks=(MANIFEST,), overwrite=out is None) as folder:
        _copy_rest(bundle, folder)
        parts = build_parts(
            folder,
            bundle / GRAPH_FILE,
            choice=choice,
            precision=manifest.precision,
            options=options,
            fp16_graph=fp16_graph if fp16_graph.is_file() else None,
        )
        rebuilt = manifest.model_copy(
            update={
                "execution": parts.execution,
                "versions": hardware.versions(),
                "command": command_without_paths(command),
            }
        )
        write_part_manifests(folder, rebuilt, parts)
        return write_manifest(folder, rebuilt)


# Those that the library that builds now lacks are left out.
_FLAGS = ("refittable", "hardware_compatible", "version_compatible", "batch_independent")


def _capabilities(choice: TensorRTChoice, probe: GpuProbe, manifest: Manifest) -> tuple[str, ...]:
    known = choice.library.compute_capabilities
    here = tuple(dict.fromkeys(gpu.compute_capability for gpu in probe.gpus if gpu.compute_capability in known))
    return here or tuple(name for name in manifest.execution.compute_capabilities if name in known)


def _copy_rest(bundle: Path, folder: Path) -> None:
    """Copy reports, card and selftest; engines, graphs and manifests are written anew."""
    for path in bundle.iterdir():
        if path.is_file() and path.name != MANIFEST and path.suffix != ".engine":
            shutil.copyfile(path, folder / path.name)


def _float_linears(manifest: Manifest) -> tuple[str, ...]:
    recipe = (manifest.quantization or {}).get("recipe", {})
    return tuple(recipe.get("exclude", ()))
