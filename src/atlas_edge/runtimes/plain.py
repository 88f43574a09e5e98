"""What a bundle's model file does where its runtime opens it alone: in benchmark_app, a model server, or C++."""

import platform

from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import Precision, Target

# Key of the notice in the model file itself.
NOTICE_KEY = "atlas_edge_notice"


def plain_runtime_notice(target: Target, precision: Precision, *, portable: bool = False) -> str | None:
    """What whoever opens a model file without atlas-edge must know, or None; see `Execution.portable`."""
    return runtime_of(target).int8_notice if precision is Precision.INT8 and not portable else None


def saturates_here() -> bool | None:
    """Whether plain runtimes add 8-bit products with saturation on this processor; None where that was not tried."""
    from atlas_edge.runtimes.int8_sums import int8_sums_are_exact

    try:
        return not int8_sums_are_exact()
    except ImportError:  # no OpenVINO to try it with, and no feature that says so
        return None if platform.machine().lower() in ("x86_64", "amd64") else False
