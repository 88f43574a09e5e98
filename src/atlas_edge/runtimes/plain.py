"""What a bundle's model file does where its runtime opens it alone: in benchmark_app, a model server, or C++."""

import platform

from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import EncoderSpec, Precision, Target

# Key of the notice in the model file itself.
NOTICE_KEY = "atlas_edge_notice"


def plain_runtime_notice(target: Target, precision: Precision, *, portable: bool = False) -> str | None:
    """What whoever opens a model file without atlas-edge must know, or None; see `Execution.portable`."""
    return runtime_of(target).int8_notice if precision is Precision.INT8 and not portable else None


def model_notes(spec: EncoderSpec, licence: str | None, *, notice: str | None) -> dict[str, str]:
    """What a model file says of itself, in ONNX's metadata or OpenVINO's `rt_info`.

    Args:
        spec: What it takes and gives; `atlas_edge_mean` and `atlas_edge_std` are of its normalisation, 0-1 scale.
        licence: Of the weights.
        notice: See `plain_runtime_notice`.
    """
    numbers = {"mean": spec.mean, "std": spec.std}
    notes = {
        "name": spec.name,
        "tile_px": str(spec.tile_px),
        "mpp": None if spec.mpp is None else str(spec.mpp),
        "mpp_range": None if spec.mpp_range is None else ", ".join(map(str, spec.mpp_range)),
        **{name: ", ".join(map(str, values)) for name, values in numbers.items()},
        "pooling": spec.pooling,
        "embed_dim": str(spec.embed_dim),
        "licence": licence,
        "input": f"tiles (B, {spec.tile_px}, {spec.tile_px}, 3) uint8 RGB",
        "normalisation": "inside",
        "warning": spec.notice,
        "notice": notice,
    }
    return {f"atlas_edge_{key}": value for key, value in notes.items() if value is not None}


def saturates_here() -> bool | None:
    """Whether plain runtimes add 8-bit products with saturation on this processor; None where that was not tried."""
    from atlas_edge.runtimes.int8_sums import int8_sums_are_exact

    try:
        return not int8_sums_are_exact()
    except ImportError:  # no OpenVINO to try it with, and no feature that says so
        return None if platform.machine().lower() in ("x86_64", "amd64") else False
