"""atlas-edge: distil, quantize, export and prove small pathology encoders."""

from atlas_edge.bundle import open_bundle, verify_bundle
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError, ChecksumError, GateFailed, InputError, RuntimeMissing, UsageError
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
    "open_bundle",
    "open_tiles",
    "verify_bundle",
]
