"""What a bundle's model file does where its runtime opens it alone: in benchmark_app, a model server, or C++."""

import platform

from atlas_edge.spec import Precision, Target

# Key of the notice in the model file itself.
NOTICE_KEY = "atlas_edge_notice"
_NOTICES = {
    Target.OPENVINO: "plain OpenVINO adds 8-bit products with saturation on a processor without VNNI or AMX, and its "
    "embeddings are WRONG there (DINOv2 ViT-S/14: cosine 0.993 in the median, 0.888 in the 1st percentile). Open the "
    "bundle with atlas_edge.open_bundle, which is right everywhere, or compile it with LP_TRANSFORMS_MODE off there.",
    Target.ONNX: "plain ONNX Runtime adds 8-bit products with saturation on a processor without VNNI, and its "
    "embeddings are less exact there (DINOv2 ViT-S/14: cosine 0.9956 for the worst tile). Open the bundle with "
    "atlas_edge.open_bundle, which is right everywhere, or set session.x64quantprecision to 1.",
}


def plain_runtime_notice(target: Target, precision: Precision) -> str | None:
    """What whoever opens a model file without atlas-edge must know, or None."""
    return _NOTICES.get(target) if precision is Precision.INT8 else None


def saturates_here() -> bool | None:
    """Whether plain runtimes add 8-bit products with saturation on this processor; None where that was not tried."""
    from atlas_edge.runtimes.int8_sums import int8_sums_are_exact

    try:
        return not int8_sums_are_exact()
    except ImportError:  # no OpenVINO to try it with, and no feature that says so
        return None if platform.machine().lower() in ("x86_64", "amd64") else False
