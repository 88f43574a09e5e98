"""atlas-edge: distil, quantize, export and prove small pathology encoders.

Here is what the four stages share: `targets` lists targets and precisions, `spec` says what an encoder takes and gives.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_edge.bundle import open_bundle, verify_bundle
    from atlas_edge.encoder import Encoder
    from atlas_edge.errors import AtlasError, ChecksumError, GateFailed, InputError, RuntimeMissing, UsageError
    from atlas_edge.models.load import load_encoder, load_model, torch_module
    from atlas_edge.spec import EncoderSpec, Precision, Target
    from atlas_edge.tiles import open_tiles

__version__ = "0.1.0"

__all__ = [
    "AtlasError",
    "ChecksumError",
    "Encoder",
    "EncoderSpec",
    "GateFailed",
    "InputError",
    "Precision",
    "RuntimeMissing",
    "Target",
    "UsageError",
    "load_encoder",
    "load_model",
    "open_bundle",
    "open_tiles",
    "torch_module",
    "verify_bundle",
]

# Official builds of ONNX Runtime since 1.29 report machine and models to Microsoft, and keep a number of the device. It
# reads this as it starts, whichever library starts it (its Privacy.md).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Imported at first use: a command's --help needs neither numpy nor pydantic.
_MODULES = {
    "bundle": ("open_bundle", "verify_bundle"),
    "encoder": ("Encoder",),
    "errors": ("AtlasError", "ChecksumError", "GateFailed", "InputError", "RuntimeMissing", "UsageError"),
    "models.load": ("load_encoder", "load_model", "torch_module"),
    "spec": ("EncoderSpec", "Precision", "Target"),
    "tiles": ("open_tiles",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
