"""The parts of an engine's bundle: the engine, the graph it was built from, and FP16 beside INT8.

```
BUNDLE/model.engine          the engine of the precision that was asked for
BUNDLE/onnx/                 a bundle of its own: the very graph, for ONNX Runtime on a machine without a GPU
BUNDLE/fp16/                 a bundle of its own: FP16, beside INT8 and FP8, since those are not always faster
```
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.bench.selftest.run import SELFTEST_FILE
from atlas_edge.bundle import BESIDE, write_manifest
from atlas_edge.export.engine.build import EngineReport, TensorRTChoice, build_engine
from atlas_edge.export.engine.child import EngineOptions
from atlas_edge.manifest import Execution, Manifest
from atlas_edge.models.graph import copy_onnx
from atlas_edge.runtimes.plain import NOTICE_KEY, plain_runtime_notice
from atlas_edge.runtimes.tensorrt_fit import FALLBACK_FOLDER
from atlas_edge.spec import Precision, Target

ENGINE_FILE = "model.engine"
GRAPH_FILE = f"{FALLBACK_FOLDER}/model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBundle:
    """What was built.

    Attributes:
        choice: The library.
        report: The engine.
        beside: FP16 beside it; None for another precision than INT8 and FP8.
    """

    choice: TensorRTChoice
    report: EngineReport
    beside: EngineReport | None

    @property
    def execution(self) -> Execution:
        """How a runtime loads the engine."""
        return execution_of(self.report)


def build_parts(
    folder: Path,
    graph: Path,
    *,
    choice: TensorRTChoice,
    precision: Precision,
    options: EngineOptions,
    fp16_graph: Path | None = None,
) -> EngineBundle:
    """Build the engines and lay their graphs beside them; `write_part_manifests` completes the inner bundles.

    Args:
        folder: The bundle.
        graph: ONNX of the precision.
        choice: From `find_tensorrt`.
        precision: Of `graph`.
        fp16_graph: ONNX in FP16, to be built beside INT8 or FP8.
        options: Of both engines.

    Raises:
        UsageError, InputError, RuntimeMissing: As `build_engine`.
    """
    report = _build(folder, graph, choice, precision, options)
    beside = None
    if fp16_graph is not None:
        beside = _build(folder / BESIDE, fp16_graph, choice, Precision.FP16, options)
    return EngineBundle(choice=choice, report=report, beside=beside)


def write_part_manifests(folder: Path, manifest: Manifest, parts: EngineBundle) -> None:
    """Make the inner folders bundles of their own. The outer manifest, written after, covers their files.

    Args:
        folder: The bundle.
        manifest: The outer manifest, complete but for its files.
        parts: From `build_parts`.
    """
    if (folder / SELFTEST_FILE).is_file():
        # The graph is what the selftest's figures were made with: it can be tested by itself, on any machine.
        shutil.copyfile(folder / SELFTEST_FILE, folder / FALLBACK_FOLDER / SELFTEST_FILE)
    _write_graph_manifest(folder, manifest)
    if parts.beside is not None:
        inner = manifest.model_copy(
            update={
                "precision": Precision.FP16,
                "execution": execution_of(parts.beside),
                "quantization": None,
                "verification": None,
            }
        )
        _write_graph_manifest(folder / BESIDE, inner)
        write_manifest(folder / BESIDE, inner)


def execution_of(report: EngineReport) -> Execution:
    """How a runtime loads an engine with its graph in `onnx/`."""
    smallest, _, largest = report.batch_profile
    return Execution(
        model_file=ENGINE_FILE,
        batch=smallest if smallest == largest else None,
        batch_profile=report.batch_profile,
        inference_precision="f32" if report.precision is Precision.FP32 else "f16",
        compute_capabilities=report.compute_capabilities,
        fallback_file=GRAPH_FILE,
        engine_library=report.library,
        engine_options=report.options,
    )


def _build(
    folder: Path, graph: Path, choice: TensorRTChoice, precision: Precision, options: EngineOptions
) -> EngineReport:
    copy = folder / GRAPH_FILE
    copy.parent.mkdir(parents=True, exist_ok=True)
    if graph.resolve() != copy.resolve():
        notice = plain_runtime_notice(Target.ONNX, precision)
        copy_onnx(graph, copy, notes={NOTICE_KEY: notice} if notice else None)
    return build_engine(copy, folder / ENGINE_FILE, library=choice.library, precision=precision, options=options)


def _write_graph_manifest(folder: Path, manifest: Manifest) -> None:
    execution = manifest.execution
    graph = Execution(
        model_file=Path(GRAPH_FILE).name, batch=execution.batch, inference_precision=execution.inference_precision
    )
    notice = plain_runtime_notice(Target.ONNX, manifest.precision)
    inner = manifest.model_copy(update={"target": Target.ONNX, "execution": graph, "notice": notice})
    write_manifest(folder / FALLBACK_FOLDER, inner)
