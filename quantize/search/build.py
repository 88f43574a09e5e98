"""A plan as files that its runtime opens: what a search measures is what an export ships."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Encoder
from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.plan import Plan
from atlas_edge.spec import Precision, Target

_ATTENTION_TILES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What every plan starts from.

    Attributes:
        model: The network in PyTorch.
        graph: Its full-precision ONNX with a dynamic batch.
        calibration: Batches of tiles, `(B, H, W, 3)` uint8.
        threads: Inference threads; the runtime's own choice when None.
    """

    model: LoadedModel
    graph: Path
    calibration: list[NDArray[np.uint8]]
    threads: int | None = None


def float_precisions(target: Target) -> tuple[Precision, ...]:
    """Half-precision formats that the target computes in on this machine, the one to prefer first."""
    if target is Target.ONNX:
        return (Precision.FP16,)
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = {Precision.BF16: "BF16", Precision.FP16: "FP16"}
    return tuple(precision for precision, name in names.items() if name in capabilities)


def check_target(target: Target) -> None:
    """Refuse a target that cannot be measured here.

    Raises:
        RuntimeMissing: A TensorRT target: its engines are not run by this search.
    """
    if target not in (Target.OPENVINO, Target.ONNX):
        raise RuntimeMissing(
            f"a search measures plans on the target, and {target} engines need their GPU",
            hint="search for onnx (the same Q/DQ graph), or compare with atlas-bench beside the GPU",
        )


def build_plan(plan: Plan, material: Material, folder: Path) -> dict[str, Any]:
    """Write the model files of a plan into a folder.

    Returns:
        Recipe and coverage, as the manifest of an export has them; empty for floating point.
    """
    if plan.target is Target.OPENVINO:
        return _build_openvino(plan, material, folder)
    return _build_onnx(plan, material, folder)


def open_plan(plan: Plan, material: Material, folder: Path) -> Encoder:
    """The encoder of a plan that `build_plan` wrote, as its bundle would run it."""
    spec, threads = material.model.spec, material.threads
    if plan.target is Target.OPENVINO:
        from atlas_edge.runtimes.openvino import OpenVinoEncoder

        precision: Any = {Precision.FP32: "f32", Precision.FP16: "f16"}.get(plan.precision, "bf16")
        written = folder / "model.xml"
        path = written if plan.precision is not Precision.FP32 and written.is_file() else material.graph
        return OpenVinoEncoder(path, spec, inference_precision=precision, threads=threads)
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    path = material.graph if plan.precision is Precision.FP32 else folder / "model.onnx"
    return OnnxEncoder(path, spec, threads=threads, precision=plan.precision.value)


def open_reference(target: Target, material: Material) -> Encoder:
    """The full-precision encoder in the runtime of the target."""
    return open_plan(Plan(name="fp32", target=target, precision=Precision.FP32), material, material.graph.parent)


def _build_openvino(plan: Plan, material: Material, folder: Path) -> dict[str, Any]:
    import openvino

    module = material.model.module
    details: dict[str, Any] = {}
    if plan.recipe is not None:
        from atlas_edge.quantize.openvino.nncf import quantize_openvino

        model, details = quantize_openvino(material.graph, material.calibration, recipe=plan.recipe, module=module)
    else:
        from atlas_edge.quantize.openvino.graph import build_openvino, foldable
        from atlas_edge.quantize.openvino.grids import VitGrids

        folded = None if plan.precision is Precision.FP32 else foldable(module)
        if folded is None:
            return {}
        model = build_openvino(folded, VitGrids(), tile_px=material.model.spec.tile_px)
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=plan.precision is Precision.FP16)
    return details


def _build_onnx(plan: Plan, material: Material, folder: Path) -> dict[str, Any]:
    out = folder / "model.onnx"
    if plan.recipe is not None:
        from atlas_edge.quantize.onnx.qdq import quantize_onnx

        module, spec = material.model.module, material.model.spec
        details = quantize_onnx(module, spec, material.calibration, out, recipe=plan.recipe)
        if plan.recipe.attention:
            from atlas_edge.quantize.onnx.attention_qdq import quantize_attention

            few = np.concatenate(material.calibration)[:_ATTENTION_TILES]
            details["attention_products"] = quantize_attention(out, out, few)
        return details
    if plan.precision is Precision.FP32:
        return {}
    if plan.precision is Precision.BF16:
        raise UsageError("ONNX Runtime computes no BF16 on a CPU", hint="choose fp16 or int8")
    from atlas_edge.quantize.onnx.half import cast_onnx

    cast_onnx(material.graph, out, plan.precision)
    return {}
