"""OpenVINO without its model converter.

`import openvino` imports the converter (`openvino.tools.ovc`), too: with all that it needs, a third of a bundle's cold
start. And unless whoever works there has opted out, the converter tells its maker of every import, from a process that
it starts for that (openvino-telemetry): nothing that a workstation in a hospital should do (2026.4).
"""

import importlib
import sys
from typing import Any

_CONVERTER = "openvino.tools.ovc"
_CONVERTS = "convert_model"


def openvino_library() -> Any:
    """The module `openvino`; its `convert_model` is imported when it is first asked for.

    Raises:
        ImportError: It is not installed.
    """
    if "openvino" not in sys.modules and _CONVERTER not in sys.modules:
        # None makes an import fail, which `openvino` allows for.
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
        try:
            library: Any = importlib.import_module("openvino")
        finally:
            del sys.modules[_CONVERTER]
        if not hasattr(library, _CONVERTS):
            library.__getattr__ = _converter
    return importlib.import_module("openvino")


def _converter(name: str) -> Any:
    if name != _CONVERTS:
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    return getattr(importlib.import_module(_CONVERTER), name)
