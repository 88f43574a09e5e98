"""A target that this package does not know: FP32 on ONNX's own evaluator. Importing this file makes it one."""

from pathlib import Path

from onnx.reference import ReferenceEvaluator

from atlas_edge.encoder import Capabilities, check_tiles, closed_error
from atlas_edge.export.backends.base import ExportBackend
from atlas_edge.manifest import Execution
from atlas_edge.models.graph import copy_onnx
from atlas_edge.quantize.backend import BACKENDS, Job, Quantized
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.runtimes.registry import RUNTIMES, Runtime
from atlas_edge.spec import Precision, Target

FILE = "model.onnx"


class EvaluatedEncoder:
    runtime, capabilities = "ONNX's evaluator", Capabilities()

    def __init__(self, path, spec):
        self.spec, self._model = spec, ReferenceEvaluator(str(path))

    def encode(self, tiles):
        check_tiles(tiles, self.spec)
        if self._model is None:
            raise closed_error(self.spec)
        return self._model.run(None, {"tiles": tiles})[0]

    def close(self):
        self._model = None


class EvaluatorBackend(ExportBackend):
    target = Target.add("onnx-evaluator")
    recipe = Recipe()
    impossible = dict.fromkeys(set(Precision) - {Precision.FP32}, "it computes what it reads")

    def quantize(self, job: Job, scratch: Path) -> Quantized:
        return Quantized(model=job.full_graph(scratch))

    def write(self, job: Job, quantized: Quantized, folder: Path) -> Execution:
        copy_onnx(quantized.model, folder / FILE)
        return Execution(model_file=FILE, batch=job.batch)

    def open_reference(self, job: Job):
        return EvaluatedEncoder(job.graph, job.model.spec)

    def open_written(self, job: Job, folder: Path):
        return EvaluatedEncoder(folder / FILE, job.model.spec)


def open_evaluated(folder, manifest, **_):
    return EvaluatedEncoder(folder / manifest.execution.model_file, manifest.encoder)


BACKEND, RUNTIME = EvaluatorBackend(), Runtime(title="ONNX", module="onnx", extra="torch", open=open_evaluated)
RUNTIMES["onnx-evaluator"], BACKENDS["onnx-evaluator"] = f"{__name__}:RUNTIME", f"{__name__}:BACKEND"
