"""ONNX Runtime and OpenVINO as whoever has never heard of atlas-edge opens a file in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.bundle import open_bundle
from atlas_edge.errors import RuntimeMissing
from atlas_edge.runtimes.openvino_library import openvino_library
from atlas_edge.runtimes.plain import plain_runtime_notice, saturates_here
from atlas_edge.spec import INPUT, OUTPUT, Precision, Target

# What benchmark_app (2026.4) sets where it is given a model and nothing else.
_BENCHMARK_APP: Mapping[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "PERF_COUNT": False}
# 2026.4: cosine 0.48 and less, where ONNX's own evaluator and ONNX Runtime agree with full precision.
_NO_FP8 = "OpenVINO's CPU plugin computes FP8 wrongly: run the engine, or the graph in ONNX Runtime"
_EXACT_HERE = "this processor adds 8-bit products exactly, which one without VNNI or AMX does not in this program"
# In one stream: with several, weights of convolutions may come out wrong without low-precision transformations.
_IN_FLOAT: Mapping[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "LP_TRANSFORMS_MODE": False}


def _own(subject: Subject) -> Answer:
    try:
        encoder = open_bundle(subject.bundle)
    except RuntimeMissing as error:
        raise Skip(error.message) from error
    try:
        figures = subject.figures(subject.embed(encoder.encode))
    finally:
        encoder.close()
    return Answer(passed=figures.passed, said=encoder.runtime, figures=figures)


def _onnxruntime(subject: Subject) -> Answer:
    import onnxruntime

    if subject.onnx is None:
        raise Skip("this bundle holds no ONNX graph")
    session = onnxruntime.InferenceSession(str(subject.onnx), providers=["CPUExecutionProvider"])
    figures = subject.figures(subject.embed(lambda piece: session.run([OUTPUT], {INPUT: piece})[0]))
    said, known = exact_here(subject, Target.ONNX), saturation(subject, Target.ONNX)
    return Answer(passed=figures.passed, said=said, figures=figures, known=known)


def _openvino(subject: Subject) -> Answer:
    figures = subject.figures(_in_openvino(subject.onnx or subject.model, subject, _BENCHMARK_APP))
    known = _NO_FP8 if subject.manifest.precision is Precision.FP8 else saturation(subject, Target.OPENVINO)
    return Answer(passed=figures.passed, said=exact_here(subject, Target.OPENVINO), figures=figures, known=known)


def _openvino_in_float(subject: Subject) -> Answer:
    known = saturation(subject, Target.OPENVINO)
    if known is None:
        raise Skip(exact_here(subject, Target.OPENVINO) or "nothing in this file saturates on any processor")
    figures = subject.figures(_in_openvino(subject.onnx or subject.model, subject, _IN_FLOAT))
    return Answer(passed=figures.passed, figures=figures)


def _in_openvino(model: Path, subject: Subject, properties: Mapping[str, Any]) -> NDArray[np.float32]:
    compiled = openvino_library().Core().compile_model(str(model), "CPU", dict(properties))

    def infer(piece: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = compiled({INPUT: piece})[OUTPUT]
        return found

    return subject.embed(infer)


def saturation(subject: Subject, target: Target) -> str | None:
    """What is known of 8-bit sums in a plain runtime on this processor; None where they are right."""
    return None if saturates_here() is False else _notice(subject, target)


def exact_here(subject: Subject, target: Target) -> str:
    """What a PASS of a plain runtime does not say of other processors; empty where it holds on all of them."""
    return _EXACT_HERE if saturates_here() is False and _notice(subject, target) is not None else ""


def _notice(subject: Subject, target: Target) -> str | None:
    manifest = subject.manifest
    return plain_runtime_notice(target, manifest.precision, portable=manifest.execution.portable)


_PLAIN_OPENVINO = (
    "python -c \"import openvino; c = openvino.Core().compile_model('MODEL', 'CPU', {}); print(c(TILES))\""
)
CHECKS = (
    Check(
        program="atlas-edge",
        distribution="atlas-edge",
        asked="embeddings, its own runtime",
        run=_own,
        command="atlas-bench selftest BUNDLE",
    ),
    Check(
        program="ONNX Runtime",
        distribution="onnxruntime",
        asked="embeddings, its defaults",
        run=_onnxruntime,
        command="python -c \"import onnxruntime as o; print(o.InferenceSession('MODEL').run(None, {'tiles': TILES}))\"",
    ),
    Check(
        program="OpenVINO",
        distribution="openvino",
        asked="embeddings, benchmark_app",
        run=_openvino,
        command=_PLAIN_OPENVINO.format(dict(_BENCHMARK_APP)),
    ),
    Check(
        program="OpenVINO",
        distribution="openvino",
        asked="embeddings, sums in float",
        run=_openvino_in_float,
        command=_PLAIN_OPENVINO.format(dict(_IN_FLOAT)),
    ),
)
