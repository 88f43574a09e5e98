"""What bundles that tests put together by hand have in common."""

from atlas_edge.manifest import Execution, Manifest
from atlas_edge.models.load import LoadedModel
from atlas_edge.spec import Precision, Target


def plain_manifest(
    model: LoadedModel,
    *,
    target: Target = Target.ONNX,
    model_file: str = "model.onnx",
    precision: Precision = Precision.FP32,
) -> Manifest:
    """Of a model's file as it is; `write_manifest` lists the files."""
    return Manifest(
        encoder=model.spec,
        target=target,
        precision=precision,
        execution=Execution(model_file=model_file),
        versions={},
        command=("atlas-export",),
        config={},
        model=model.provenance,
        files=(),
    )
