"""OpenVINO's own format, layer by layer where the network allows it, else through NNCF."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from atlas_edge.encoder import Encoder
from atlas_edge.export.backends.base import ExportBackend, Way
from atlas_edge.export.graph.openvino_file import save_openvino
from atlas_edge.manifest import Execution
from atlas_edge.models.load import free_weights
from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.paths import LAYER_WISE, NNCF
from atlas_edge.quantize.portable import check_portable
from atlas_edge.quantize.recipe import check_merges_nothing, openvino_recipe
from atlas_edge.runtimes.plain import model_notes, plain_runtime_notice
from atlas_edge.spec import Precision, Target

if TYPE_CHECKING:
    from torch import nn

    from atlas_edge.export.config import ExportConfig

_FILE = "model.xml"


class OpenVinoBackend(ExportBackend):
    """OpenVINO on the CPU."""

    target = Target.OPENVINO
    recipe = openvino_recipe()
    impossible: ClassVar = {Precision.FP8: "OpenVINO's CPU plugin computes no FP8; choose int8 or bf16"}
    symmetric = False
    builds_with = ("openvino",)
    packaged = (Precision.FP32, Precision.BF16, Precision.INT8)

    def float_precisions(self) -> tuple[Precision, ...]:
        from atlas_edge.runtimes.devices.openvino import float_formats

        here = float_formats()
        return tuple(precision for precision in (Precision.BF16, Precision.FP16) if precision.name in here)

    def modules(self, precision: Precision) -> tuple[str, ...]:
        return ("openvino", "nncf") if precision is Precision.INT8 else self.builds_with

    def check_network(self, config: "ExportConfig", module: "nn.Module") -> None:
        recipe = config.int8_recipe
        if config.precision is not Precision.INT8 or recipe.merge_tokens == 1:
            return
        from atlas_edge.models.folding.merging import with_merging
        from atlas_edge.models.folding.vit import fold_vit

        folded = fold_vit(module) if recipe.quantizer == "layers" else None
        if folded is not None:
            with_merging(folded, recipe.merge_tokens)
            return
        reason = self.quantized_way(config.precision, module).reason or "the recipe asks for it"
        check_merges_nothing(recipe, "NNCF", reason=reason)

    def quantized_way(self, precision: Precision, module: "nn.Module") -> Way:
        from atlas_edge.models.folding.known import unfoldable_part

        unknown = unfoldable_part(module)
        return Way(path=LAYER_WISE if unknown is None else NNCF, reason=unknown)

    def quantize(self, job: Job, scratch: Path) -> Quantized:
        import openvino

        module = job.model.module
        if job.recipe is not None:
            from atlas_edge.quantize.openvino.nncf import integer_weights, quantize_openvino

            graph = job.traced_graph(scratch) if job.recipe.quantizer == "nncf" else job.graph
            model, details = quantize_openvino(
                graph, job.calibration, recipe=job.recipe, module=module, last_use=job.last_use
            )
            if job.portable:
                check_portable(integer_weights(model))
            return Quantized(model=model, quantization=details)
        from atlas_edge.models.folding.vit import fold_vit

        folded = fold_vit(module)
        if folded is not None:
            if job.last_use:
                free_weights(module)
            from atlas_edge.quantize.openvino.graph import build_openvino
            from atlas_edge.quantize.openvino.grids import VitGrids

            return Quantized(model=build_openvino(folded, VitGrids(), tile_px=job.model.spec.tile_px))
        return Quantized(model=openvino.Core().read_model(str(job.graph)))

    def write(self, job: Job, quantized: Quantized, folder: Path) -> Execution:
        _number_anew(quantized.model)
        notice = plain_runtime_notice(self.target, job.precision, portable=job.portable)
        for key, value in model_notes(job.model.spec, job.model.provenance.licence, notice=notice).items():
            quantized.model.set_rt_info(value, key)
        save_openvino(quantized.model, folder / _FILE, half=job.precision is Precision.FP16)
        return Execution(
            model_file=_FILE, batch=job.batch, inference_precision=_inference(job.precision), portable=job.portable
        )

    def open_reference(self, job: Job) -> Encoder:
        return _open(job.graph, job, Precision.FP32)

    def open_written(self, job: Job, folder: Path) -> Encoder:
        return _open(folder / _FILE, job, job.precision)


def _open(path: Path, job: Job, precision: Precision) -> Encoder:
    from atlas_edge.runtimes.openvino import OpenVinoEncoder

    spec, inference = job.model.spec, _inference(precision)
    return OpenVinoEncoder(path, spec, inference_precision=inference, threads=job.threads, batch=job.batch)


def _number_anew(model: Any) -> None:
    """Number the nodes that have no name of their own by their order: OpenVINO counts them over the whole process.

    The same graph is then the same file, and lies in a package once.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        kind, _, number = node.get_friendly_name().rpartition("_")
        if kind == node.get_type_name() and number.isdecimal():
            node.set_friendly_name(f"{kind}_{index}")


def _inference(precision: Precision) -> Any:
    return {Precision.FP32: "f32", Precision.FP16: "f16"}.get(precision, "bf16")


BACKEND = OpenVinoBackend()
