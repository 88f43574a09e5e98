"""ONNX's own checker, its strict shape inference, and its reference evaluator."""

import tempfile
from pathlib import Path
from typing import Any

from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.spec import INPUT, OUTPUT, TOKENS

# It computes in NumPy, one operator after the other: seconds for a tile of a ViT-Ti, minutes for one of a ViT-L.
_MOST_REFERENCE_BYTES = 40_000_000
_REFERENCE_TILES = 2


def _graph(subject: Subject) -> Path:
    if subject.onnx is None:
        raise Skip("this bundle holds no ONNX graph")
    return subject.onnx


def _checker(subject: Subject) -> Answer:
    import onnx

    onnx.checker.check_model(str(_graph(subject)), full_check=True)
    return Answer(passed=True, said=f"opset {_opset(subject)}, no complaint")


def _opset(subject: Subject) -> int:
    import onnx

    model = onnx.load(_graph(subject), load_external_data=False)
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _shapes(subject: Subject) -> Answer:
    import onnx

    graph = _graph(subject)
    with tempfile.TemporaryDirectory() as folder:
        inferred = Path(folder) / graph.name
        onnx.shape_inference.infer_shapes_path(
            str(graph), str(inferred), check_type=True, strict_mode=True, data_prop=True
        )
        model = onnx.load(inferred, load_external_data=False)
    found = {port.name: _shape(port) for port in (*model.graph.input, *model.graph.output)}
    spec = subject.manifest.encoder
    names = (INPUT, *(name for name, _ in zip((OUTPUT, TOKENS), spec.output_shapes(tokens=True), strict=False)))
    wanted = dict(zip(names, ((spec.tile_px, spec.tile_px, 3), *spec.output_shapes(tokens=True)), strict=True))
    said = ", ".join(f"{name} {list(shape)}" for name, shape in found.items())
    return Answer(passed={name: shape[1:] for name, shape in found.items()} == wanted, said=said)


def _shape(port: Any) -> tuple[Any, ...]:
    return tuple(axis.dim_value or axis.dim_param for axis in port.type.tensor_type.shape.dim)


def _reference(subject: Subject) -> Answer:
    from onnx.reference import ReferenceEvaluator

    from atlas_edge.models.graph import onnx_bytes

    graph = _graph(subject)
    size = onnx_bytes(graph)
    if size > _MOST_REFERENCE_BYTES:
        raise Skip(f"{size / 1e6:.0f} MB: it takes networks of up to {_MOST_REFERENCE_BYTES / 1e6:.0f} MB here")
    evaluator = ReferenceEvaluator(str(graph))
    found = subject.embed(lambda piece: evaluator.run([OUTPUT], {INPUT: piece})[0], count=_REFERENCE_TILES)
    figures = subject.figures(found)
    return Answer(passed=figures.passed, figures=figures)


CHECKS = (
    Check(
        program="onnx.checker",
        distribution="onnx",
        asked="valid ONNX",
        run=_checker,
        command="python -c \"import onnx; onnx.checker.check_model('MODEL', full_check=True)\"",
    ),
    Check(
        program="onnx.shape_inference",
        distribution="onnx",
        asked="types and shapes, strictly",
        run=_shapes,
        command="python -c \"import onnx; onnx.shape_inference.infer_shapes_path('MODEL', 'inferred.onnx', "
        'check_type=True, strict_mode=True, data_prop=True)"',
    ),
    Check(
        program="onnx.reference",
        distribution="onnx",
        asked="embeddings by definition",
        run=_reference,
        command="python -c \"import numpy, onnx.reference as r; print(r.ReferenceEvaluator('MODEL').run(None, "
        "{'tiles': TILES}))\"",
    ),
)
