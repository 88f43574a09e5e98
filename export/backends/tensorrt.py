"""TensorRT and TensorRT-RTX: engines, and the graphs that they are built from."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from atlas_edge.export.backends.base import Ability, Built
from atlas_edge.export.backends.onnx import OnnxBackend
from atlas_edge.export.config import ExportConfig
from atlas_edge.export.engine.build import check_options, find_tensorrt
from atlas_edge.export.engine.bundle import GRAPH_FILE, build_parts, write_part_manifests
from atlas_edge.export.engine.child import DEFAULTS, EngineOptions
from atlas_edge.export.engine.graphs import engine_graphs, engine_recipe
from atlas_edge.export.steps import Steps
from atlas_edge.manifest import Manifest
from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX, TensorRTLibrary
from atlas_edge.spec import Precision


class TensorRTBackend(OnnxBackend):
    """One of the two libraries. What cannot run without a GPU is opened as the ONNX that it was built from.

    Args:
        library: Which; `find_tensorrt` may choose the other one for enterprise TensorRT.
    """

    graph_file = GRAPH_FILE
    impossible: ClassVar = {}

    def __init__(self, library: TensorRTLibrary) -> None:
        self.library: TensorRTLibrary = library
        self.target = library.target
        # FP16 lies inside it; what fits one GPU only is no variant for any workstation.
        self.packaged = (Precision.INT8,) if library.builds_without_gpu else ()
        self.packaged_portable = ()

    def default_recipe(self, precision: Precision) -> Recipe:
        return engine_recipe(precision)

    def check(self, config: ExportConfig) -> None:
        super().check(config)
        check_options(find_tensorrt(self.library).library, config.precision, _options(config))

    def quantize(self, job: Job, scratch: Path) -> Quantized:
        return engine_graphs(job, scratch)

    def build(self, config: ExportConfig, job: Job, quantized: Quantized, folder: Path, steps: Steps) -> Built:
        choice = find_tensorrt(self.library)
        steps.note(f"{choice.library.title} {choice.version}: {choice.reason}")
        parts = build_parts(
            folder,
            quantized.model,
            choice=choice,
            precision=config.precision,
            options=_options(config),
            fp16_graph=quantized.beside,
        )
        details: dict[str, object] = {"library_reason": choice.reason}
        for precision, report in ((config.precision, parts.report), (Precision.FP16, parts.beside)):
            if report is not None:
                details[f"engine_{precision.value}"] = asdict(report)
                gpus = ", ".join(report.compute_capabilities) or "of this GPU"
                steps.note(
                    f"{precision.value} engine for compute capability {gpus}: "
                    f"{report.size_bytes / 1e6:.1f} MB in {report.build_seconds:.1f} s"
                )
        return Built(
            execution=parts.execution,
            details=details,
            not_run=f"the engine was built with {choice.library.title} {choice.version} and not run; the figures are "
            "those of the very ONNX that it was built from, in ONNX Runtime on the CPU",
            parts=parts,
        )

    def finish(self, folder: Path, manifest: Manifest, built: Built) -> None:
        write_part_manifests(folder, manifest, built.parts)

    def next_command(self, folder: Path) -> str:
        return f"atlas-export verify {folder}   # then copy it to the workstation with the GPU"

    def ability(self, installed: Collection[str], *, gpu: bool) -> Ability:
        # Enterprise TensorRT builds beside a GPU only, and RTX stands in for it.
        own = self.library.module in installed and (gpu or self.library.builds_without_gpu)
        any_library = own or RTX.module in installed
        stands_in = "" if own else f"built with {RTX.title}"
        return Ability(
            target=self.target.value,
            build={"torch", "timm", "onnx"} <= set(installed) and any_library,
            run=any_library and gpu,
            note=(stands_in if self.library is ENTERPRISE else "") if gpu else "an engine runs on a GPU only",
        )


def _options(config: ExportConfig) -> EngineOptions:
    sizes = config.batch
    return EngineOptions(
        compute_capabilities=config.compute_capabilities,
        batch_profile=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else DEFAULTS.batch_profile,
        refittable=config.refit,
        strip_weights=config.strip,
        hardware_compatible=config.hardware_compatible,
        version_compatible=config.version_compatible,
        batch_independent=config.batch_independent,
        timing_cache=config.timing_cache,
        float_linears=config.recipe.exclude if config.recipe is not None else (),
    )


ENTERPRISE_BACKEND, RTX_BACKEND = (TensorRTBackend(library) for library in (ENTERPRISE, RTX))
