"""ONNX, with Q/DQ nodes in INT8."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from atlas_edge.encoder import Encoder
from atlas_edge.export.backends.base import ExportBackend, Way
from atlas_edge.manifest import Execution
from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.foreign import foreign_errors
from atlas_edge.quantize.paths import FITTED, NEAREST
from atlas_edge.quantize.portable import check_portable
from atlas_edge.quantize.recipe import Recipe, onnx_recipe
from atlas_edge.runtimes.plain import model_notes, plain_runtime_notice
from atlas_edge.spec import Precision, Target

if TYPE_CHECKING:
    from torch import nn

    from atlas_edge.export.config import ExportConfig

_ATTENTION_TILES = 32
_INFERENCE: Any = {Precision.FP16: "f16", Precision.BF16: "bf16"}


class OnnxBackend(ExportBackend):
    """ONNX Runtime.

    Attributes:
        graph_file: The graph, in the bundle.
    """

    graph_file = "model.onnx"
    target = Target.ONNX
    recipe = onnx_recipe()
    # FP16 is for GPUs; on a processor it is slow.
    packaged: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8)
    # Without VNNI its products need no detour, and are the fastest that there are.
    packaged_portable: tuple[Precision, ...] = (Precision.INT8,)
    impossible: ClassVar = {
        Precision.FP8: "ONNX Runtime's CPU provider computes no FP8; choose int8, or --target tensorrt-rtx"
    }

    def float_precisions(self) -> tuple[Precision, ...]:
        return (Precision.FP16,)  # BF16 has no kernels on the CPU

    def modules(self, precision: Precision) -> tuple[str, ...]:
        # OpenVINO watches the scales while calibration tiles are added.
        return ("modelopt", "openvino") if precision in (Precision.INT8, Precision.FP8) else ()

    def check_network(self, config: "ExportConfig", module: "nn.Module") -> None:
        from atlas_edge.quantize.onnx.qdq import check_merging

        if config.precision is Precision.INT8:
            check_merging(module, config.int8_recipe)

    def quantized_way(self, precision: Precision, module: "nn.Module") -> Way:
        from atlas_edge.quantize.numerics.stages import unfittable_part

        if self.default_recipe(precision).weights != "fitted":
            return Way(path=NEAREST)
        unknown = unfittable_part(module)
        return Way(path=FITTED if unknown is None else NEAREST, reason=unknown)

    @foreign_errors("the network cannot be brought to this precision")
    def quantize(self, job: Job, scratch: Path) -> Quantized:
        out = scratch / "quantized.onnx"
        if job.recipe is not None:
            from atlas_edge.quantize.onnx.engine_graph import fold_weights

            details, stored = _quantize_int8(job, job.recipe, out), scratch / "stored.onnx"
            fold_weights(out, stored)
            return Quantized(model=stored, quantization=details)
        full = job.full_graph(scratch)
        if job.precision is Precision.FP32:
            return Quantized(model=full)
        if job.precision is Precision.FP16:
            from atlas_edge.quantize.onnx.half_range import RANGE_TILES, cast_in_range

            found = cast_in_range(full, out, job.some_tiles(RANGE_TILES))
            return Quantized(model=out, quantization={"fp16_range": asdict(found)})
        from atlas_edge.quantize.onnx.half import cast_onnx

        # Without kernels on the CPU, BF16 is the form in which the weights are stored.
        cast_onnx(full, out, job.precision, weights_only=True)
        return Quantized(model=out)

    def write(self, job: Job, quantized: Quantized, folder: Path) -> Execution:
        from atlas_edge.models.graph import copy_onnx

        notice = plain_runtime_notice(self.target, job.precision, portable=job.portable)
        notes = model_notes(job.model.spec, job.model.provenance.licence, notice=notice)
        copy_onnx(quantized.model, folder / self.graph_file, notes=notes)
        precision = _INFERENCE.get(job.precision, "f32")
        return Execution(
            model_file=self.graph_file, batch=job.batch, inference_precision=precision, portable=job.portable
        )

    def open_reference(self, job: Job) -> Encoder:
        return _open(job.graph, job, Precision.FP32)

    def open_written(self, job: Job, folder: Path) -> Encoder:
        return _open(folder / self.graph_file, job, job.precision)


def _open(path: Path, job: Job, precision: Precision) -> Encoder:
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    portable = job.portable and precision is job.precision
    return OnnxEncoder(path, job.model.spec, threads=job.threads, precision=precision.value, portable=portable)


def _quantize_int8(job: Job, recipe: Recipe, out: Path) -> dict[str, Any]:
    from atlas_edge.quantize.onnx.qdq import integer_weights, quantize_onnx

    module, spec = job.model.module, job.model.spec
    details = quantize_onnx(module, spec, job.calibration, out, recipe=recipe, batch=job.batch, ranges=job.ranges)
    if job.portable:
        check_portable(integer_weights(out))
    # The products of attention have no weights: nothing there is kept to 7 bits.
    if recipe.attention and not job.portable:
        from atlas_edge.quantize.onnx.attention_qdq import quantize_attention

        details["attention_products"] = quantize_attention(out, out, job.some_tiles(_ATTENTION_TILES))
    return details


BACKEND = OnnxBackend()
