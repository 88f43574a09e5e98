"""Faces: the graph of a bundle behind the input that another program feeds.

A face begins with what turns its input back into 8-bit pixels; from there on it is the bundle's own graph, weights and
normalisation included, and so are its embeddings.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bundle import MANIFEST, check_outside, model_folder, sha256_file, verify_bundle
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.export.graph.openvino_file import save_openvino
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.plain import model_notes
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.atomic import atomic_folder

Face = Literal["nchw-float-0-255", "nchw-float-0-1", "nchw-float-normalised"]

FACTS = "face.json"
INPUT = "images"


def write_face(bundle: Path, out: Path, *, face: Face, overwrite: bool = False) -> dict[str, str]:
    """Write the model file of a bundle with another input: `images`, `(B, 3, tile_px, tile_px)` float32.

    Args:
        bundle: ONNX or OpenVINO bundle; for an engine, the bundle `onnx` inside.
        out: Folder to write: the model file under its own name, and `face.json` with what is in its metadata.
        face: What the caller feeds: grey levels from 0 to 255 or from 0 to 1 (normalisation is inside), or images that
            it has normalised by the encoder's mean and deviation (normalisation is outside). Rounded to 8 bits.
        overwrite: Replace a face that is there.

    Returns:
        The metadata of the model file.

    Raises:
        UsageError: The bundle's target has no such faces, or `out` is taken or inside the bundle.
        InputError: The bundle is damaged, or its graph has another input than its manifest says.
        RuntimeMissing: The library that writes the file is not installed.
    """
    check_outside(bundle, out)
    manifest = verify_bundle(bundle)
    model_file = manifest.execution.model_file
    writers = {".onnx": _write_onnx, ".xml": _write_openvino}
    write = writers.get(Path(model_file).suffix)
    if write is None:
        raise UsageError(
            f"{bundle} holds an engine, whose input cannot be changed",
            hint=f"give the graph it was built of: {bundle}/onnx",
        )
    notes = {
        **face_notes(manifest, face),
        "atlas_edge_manifest_sha256": sha256_file(bundle / MANIFEST),
    }
    with atomic_folder(out, marks=(FACTS,), overwrite=overwrite) as folder:
        write(model_folder(bundle) / model_file, folder / model_file, manifest.encoder, face, notes)
        (folder / FACTS).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    return notes


def face_notes(manifest: Manifest, face: Face) -> dict[str, str]:
    """What the metadata of a face says."""
    notes = model_notes(manifest.encoder, manifest.model.licence, notice=manifest.notice)
    where = "outside: feed (pixel / 255 - mean) / std" if face == "nchw-float-normalised" else "inside"
    side = manifest.encoder.tile_px
    given = {"atlas_edge_input": f"images (B, 3, {side}, {side}) float32, {face}", "atlas_edge_normalisation": where}
    return {**notes, **given}


def _levels(spec: EncoderSpec, face: Face) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factor and addend, `(1, 3, 1, 1)` each, from what is fed to grey levels."""
    assert face in get_args(Face)
    numbers = {
        "nchw-float-0-255": (np.ones(3), np.zeros(3)),
        "nchw-float-0-1": (np.full(3, 255.0), np.zeros(3)),
        "nchw-float-normalised": (255.0 * np.array(spec.std), 255.0 * np.array(spec.mean)),
    }[face]
    factor, addend = (part.astype(np.float32).reshape(1, 3, 1, 1) for part in numbers)
    return factor, addend


def _write_onnx(source: Path, target: Path, spec: EncoderSpec, face: Face, notes: Mapping[str, str]) -> None:
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise RuntimeMissing("onnx is not installed", hint="pip install 'atlas-edge[torch]'") from error
    from atlas_edge.models.graph import save_onnx

    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    if len(graph.input) != 1 or graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        raise InputError(f"{source.name} has another input than uint8 tiles", hint="export the bundle again")
    tiles = graph.input[0]
    batch = tiles.type.tensor_type.shape.dim[0]
    side = spec.tile_px
    factor, addend = _levels(spec, face)
    constants = {"factor": factor, "addend": addend, "low": np.float32(0), "high": np.float32(255)}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), f"face/{name}") for name, value in constants.items()
    )
    steps: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
        ("Mul", ("face/factor",), {}),
        ("Add", ("face/addend",), {}),
        ("Round", (), {}),
        ("Clip", ("face/low", "face/high"), {}),
        ("Transpose", (), {"perm": [0, 2, 3, 1]}),
        ("Cast", (), {"to": onnx.TensorProto.UINT8}),
    )
    nodes, value = [], INPUT
    for kind, more, attributes in steps:
        result = tiles.name if kind == "Cast" else f"face/{kind}"
        nodes.append(helper.make_node(kind, [value, *more], [result], name=f"face/{kind}", **attributes))
        value = result
    kept = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *kept])
    shape = [batch.dim_value or batch.dim_param or "batch", 3, side, side]
    graph.input.append(helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape))
    helper.set_model_props(model, dict(notes))
    save_onnx(model, target, weights_from=source.parent)


def _write_openvino(source: Path, target: Path, spec: EncoderSpec, face: Face, notes: Mapping[str, str]) -> None:
    try:
        import openvino
        from openvino import opset13 as ops
    except ImportError as error:
        raise RuntimeMissing("openvino is not installed", hint="pip install 'atlas-edge[openvino]'") from error
    try:
        model = openvino.Core().read_model(str(source))
        (tiles,) = model.get_parameters()
    except Exception as error:  # its front ends raise anything
        raise InputError(f"{source.name}: OpenVINO cannot read it: {error}", hint="export the bundle again") from error
    factor, addend = _levels(spec, face)
    side = spec.tile_px
    shape = openvino.PartialShape([tiles.get_partial_shape()[0], 3, side, side])
    images = ops.parameter(shape, np.float32, name=INPUT)
    images.output(0).set_names({INPUT})
    levels = ops.round(ops.add(ops.multiply(images, ops.constant(factor)), ops.constant(addend)), "half_to_even")
    pixels = ops.transpose(ops.clamp(levels, 0.0, 255.0), ops.constant(np.array([0, 2, 3, 1], np.int64)))
    tiles.output(0).replace(ops.convert(pixels, "u8").output(0))
    model.add_parameters([images])
    model.remove_parameter(tiles)
    model.validate_nodes_and_infer_types()
    for key, value in notes.items():
        model.set_rt_info(value, key)
    save_openvino(model, target)
