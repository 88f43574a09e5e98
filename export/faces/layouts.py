"""A bundle in the folders that others read: model servers', ONNX Runtime's, the BioImage Model Zoo's."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from atlas_edge.bundle import check_outside, model_folder, verify_bundle
from atlas_edge.errors import UsageError
from atlas_edge.export.faces.bioimageio import RDF, write_description
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.plain import model_notes
from atlas_edge.runtimes.tensorrt import STRIPPED
from atlas_edge.runtimes.tensorrt_library import RTX
from atlas_edge.spec import INPUT, OUTPUT, TOKENS
from atlas_edge.system.atomic import atomic_folder

Layout = Literal["triton", "ovms", "onnxruntime", "bioimageio"]

COMPONENT = "encoder"
"""Of a model package."""

# Most tiles of a call that Triton may gather, where the graph takes any number.
_MOST_TILES = 64
# Backend of Triton, and the name under which it looks for the model.
_TRITON = {
    ".onnx": ("onnxruntime", "model.onnx"),
    ".xml": ("openvino", "model.xml"),
    ".engine": ("tensorrt", "model.plan"),
}
# Variants of a model package: ONNX Runtime takes the first whose provider is the one that it was asked for.
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}


def write_layout(bundle: Path, out: Path, *, layout: Layout, overwrite: bool = False) -> Manifest:
    """Copy the model of a bundle into the folder that somebody else's program reads, with its configuration.

    Tiles stay `(B, tile_px, tile_px, 3)` uint8, normalisation stays in the graph.

    Args:
        bundle: Bundle folder.
        out: Folder to write: Triton's model repository, the folder of OVMS's `config.json`, each with version 1 of the
            model, a model package of ONNX Runtime (1.29 and later), or a folder with `rdf.yaml`.
        layout: Which of them.
        overwrite: Replace a folder that this command wrote.

    Returns:
        The bundle's manifest; its `notice` says what such a program may compute wrongly.

    Raises:
        UsageError: That program runs no models of this kind (OVMS no engines; Triton none of TensorRT-RTX, and none
            without its weights; the last two hold ONNX), or `out` is taken or inside the bundle.
        InputError, ChecksumError: The bundle is damaged, or has no selftest and `rdf.yaml` needs one.
    """
    check_outside(bundle, out)
    manifest = verify_bundle(bundle)
    model_file = model_folder(bundle) / manifest.execution.model_file
    _check_runs(manifest, layout)
    name = server_name(manifest)
    own_name = _TRITON[model_file.suffix][1] if layout == "triton" else model_file.name
    write, *forms = _FORMS[layout]
    configuration, place = (form.format(name=name) for form in forms)
    # A bundle has a manifest.json, too: a package is known by its model beside it.
    marks = (configuration,) if layout != "onnxruntime" else (configuration, f"{place}/{own_name}")
    with atomic_folder(out, marks=marks, overwrite=overwrite) as folder:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for source in _with_weights(model_file):
            target = own_name if source == model_file else source.name
            shutil.copyfile(source, folder / place / target)
        if write is None:
            write_description(bundle, manifest, folder)
        else:
            (folder / configuration).write_text(write(manifest), encoding="utf-8")
    return manifest


def _check_runs(manifest: Manifest, layout: Layout) -> None:
    """Refuse a model that the program cannot open."""
    execution = manifest.execution
    if layout in ("onnxruntime", "bioimageio"):
        if not execution.model_file.endswith(".onnx"):
            raise UsageError(
                f"--layout {layout} holds ONNX graphs, and this bundle is for {manifest.target.value}",
                hint="give the bundle `onnx` inside it, or one of --target onnx",
            )
        return
    if Path(execution.model_file).suffix != ".engine":
        return
    if layout == "ovms":
        raise UsageError("OVMS runs no TensorRT engines", hint="--layout triton, or a bundle of --target openvino")
    if execution.engine_library == RTX.module:
        raise UsageError(
            f"Triton runs engines of TensorRT, and this one is of {RTX.title}",
            hint="give the bundle `onnx` inside it, or one of --target tensorrt",
        )
    if STRIPPED in execution.engine_options:
        raise UsageError(
            "the engine holds no weights, and Triton does not fill them in", hint="atlas-export rebuild --no-strip"
        )


def server_name(manifest: Manifest) -> str:
    """What the server calls the model: encoder and precision, in letters that URLs take."""
    encoder = re.sub(r"[^A-Za-z0-9_.-]+", "-", manifest.encoder.name).strip(".-") or "encoder"
    return f"{encoder}-{manifest.precision.value}"


def triton_config(manifest: Manifest) -> str:
    """`config.pbtxt`: the text form of Triton's `ModelConfig` (triton-inference-server/common, model_config.proto)."""
    spec, execution = manifest.encoder, manifest.execution
    backend, _ = _TRITON[Path(execution.model_file).suffix]
    most = execution.batch_profile[2] if execution.batch_profile else _MOST_TILES
    # A graph with a fixed batch has it among its dimensions, and Triton gathers nothing.
    batch = [] if execution.batch is None else [execution.batch]
    shapes = dict(zip((OUTPUT, TOKENS), spec.output_shapes(tokens=True), strict=False))
    lines = [
        f'name: "{server_name(manifest)}"',
        f'backend: "{backend}"',
        f"max_batch_size: {0 if batch else most}",
        _port("input", INPUT, "TYPE_UINT8", [*batch, spec.tile_px, spec.tile_px, 3]),
        *(_port("output", name, "TYPE_FP32", [*batch, *shape]) for name, shape in shapes.items()),
    ]
    if not batch:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 1000 }")
    notes = model_notes(spec, manifest.model.licence, notice=manifest.notice)
    lines += [
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(text)} }} }}"
        for key, text in notes.items()
    ]
    return "\n".join(lines) + "\n"


def ovms_config(manifest: Manifest) -> str:
    """`config.json` of OpenVINO Model Server; the path is relative to this file."""
    name = server_name(manifest)
    plugin = {"INFERENCE_PRECISION_HINT": manifest.execution.inference_precision}
    model = {"name": name, "base_path": name, "target_device": "CPU", "plugin_config": plugin}
    return json.dumps({"model_config_list": [{"config": model}]}, indent=2) + "\n"


def package_manifest(manifest: Manifest) -> str:
    """`manifest.json` of a model package (ONNX Runtime's model_package/README.md, schema 1.0).

    Every provider is given the same file.
    """
    name = server_name(manifest)
    info = {"ort": {"model_file": Path(manifest.execution.model_file).name}}
    variants = {
        variant: {"variant_directory": name, "ep": provider, "executor_info": info}
        for variant, provider in _PROVIDERS.items()
    }
    package = {
        "schema_version": "1.0",
        "package_name": name,
        "description": f"Tile encoder {manifest.encoder.name}, {manifest.precision.value}",
        "components": {COMPONENT: {"variants": variants}},
        "additional_metadata": model_notes(manifest.encoder, manifest.model.licence, notice=manifest.notice),
    }
    return json.dumps(package, indent=2) + "\n"


# What writes the configuration, where it lies, and where the model does; rdf.yaml names other files, too.
_FORMS: dict[Layout, tuple[Callable[[Manifest], str] | None, str, str]] = {
    "triton": (triton_config, "{name}/config.pbtxt", "{name}/1"),
    "ovms": (ovms_config, "config.json", "{name}/1"),
    "onnxruntime": (package_manifest, "manifest.json", "{name}"),
    "bioimageio": (None, RDF, "."),
}


def _port(kind: str, name: str, numbers: str, shape: list[int]) -> str:
    return f'{kind} [ {{ name: "{name}" data_type: {numbers} dims: {shape} }} ]'


def _with_weights(model_file: Path) -> Iterator[Path]:
    yield model_file
    for beside in (model_file.with_suffix(".bin"), model_file.with_name(f"{model_file.name}.data")):
        if beside.is_file():
            yield beside
