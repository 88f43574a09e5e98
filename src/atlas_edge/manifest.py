"""`manifest.json`: what a bundle is, where it came from, and the hash of every file in it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_edge.spec import EncoderSpec, Precision, Target

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)


# More tiles a call are a mistake, not a batch.
Batch = Annotated[int, Field(ge=1, le=65536)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Model):
    """One file of a bundle; `path` is relative with forward slashes."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class ModelProvenance(_Model):
    """Where the weights came from.

    Attributes:
        sha256: Of the safetensors file; None for random weights.
        revision: Commit of a hub repository.
        assumptions: What its files do not say and was taken for granted, one sentence each.
    """

    name: str
    source: Literal["registry", "checkpoint", "hf-hub"]
    sha256: str | None = None
    revision: str | None = None
    assumptions: tuple[str, ...] = ()
    licence: str | None = None
    seed: int | None = None


class TilesProvenance(_Model):
    """Which tiles were used, by fingerprint rather than by path."""

    name: str
    kind: str
    split: str | None = None
    tiles: int = Field(ge=1)
    fingerprint: str
    synthetic: bool = False
    licence: str | None = None
    also_in_evaluation: bool = False


class Execution(_Model):
    """How a runtime must load the bundle.

    Attributes:
        model_file: The file that the runtime opens.
        batch: Fixed batch size, or None for a dynamic batch.
        batch_profile: `(min, opt, max)` of a TensorRT optimisation profile.
        inference_precision: Precision of the layers that are not INT8/FP8 (`f32`, `f16` or `bf16`).
        compute_capabilities: CUDA compute capabilities that an engine was built for, such as `8.6`.
        fallback_file: The ONNX graph that an engine was built from.
        engine_library: Which library built an engine.
        engine_options: Build options of an engine that were on, such as `strip_weights`.
        portable: 8-bit sums cannot overflow (weights of 7 bits): any runtime that opens the file computes it rightly,
            also on a processor without VNNI.
    """

    model_file: str
    batch: Batch | None = None
    batch_profile: tuple[Batch, Batch, Batch] | None = None
    inference_precision: Literal["f32", "f16", "bf16"] = "f32"
    compute_capabilities: tuple[str, ...] = ()
    fallback_file: str | None = None
    engine_library: Literal["tensorrt", "tensorrt_rtx"] | None = None
    engine_options: tuple[str, ...] = ()
    portable: bool = Field(default=False, exclude_if=lambda portable: not portable)


class Manifest(_Model):
    """The whole of `manifest.json`.

    Attributes:
        quantization: The recipe that made it and what it covered; None for a bundle without quantized layers.
        verification: Measured figures of the export (agreement, drop, speed), as in `report.json`.
        config: The resolved configuration of the command.
        notice: What whoever opens the model file without atlas-edge must know; None where there is nothing.
    """

    schema_version: Literal[1, 2] = 2
    created_utc: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    encoder: EncoderSpec
    target: Target
    precision: Precision
    execution: Execution
    versions: dict[str, str]
    command: tuple[str, ...]
    config: dict[str, Any]
    model: ModelProvenance
    calibration: TilesProvenance | None = None
    evaluation: TilesProvenance | None = None
    quantization: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None
    notice: str | None = None
    files: tuple[BundleFile, ...]
