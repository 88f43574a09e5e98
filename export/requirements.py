"""What an export needs on this machine, checked before any work is done."""

from atlas_edge.cli import require_module
from atlas_edge.export.config import ExportConfig
from atlas_edge.spec import Precision, Target


def check_requirements(config: ExportConfig) -> None:
    """Raise RuntimeMissing for the first library or device that this export needs and this machine lacks."""
    for module in ("torch", "timm", "onnx", "onnxruntime", "sklearn"):
        require_module(module, extra="torch")
    if config.target is Target.OPENVINO:
        require_module("openvino", extra="torch")
        if config.precision is Precision.INT8:
            require_module("nncf", extra="torch")
    elif config.precision in (Precision.INT8, Precision.FP8):
        require_module("modelopt", extra="torch")
        # It watches the scales while calibration tiles are added, whatever the target.
        require_module("openvino", extra="torch")
    if config.target in (Target.TENSORRT, Target.TENSORRT_RTX):
        from atlas_edge.export.engine.target import check_engine_options

        check_engine_options(config)
