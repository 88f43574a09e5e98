"""What a bundle is built for, and in which number format."""

from enum import StrEnum


class Precision(StrEnum):
    """Number format of weights and activations in the compute-heavy layers."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class Target(StrEnum):
    """What a bundle is built for.

    All that differs between targets is in `runtimes.registry`, where bundles are opened, and in `quantize.backend`,
    where they are made.
    """

    ONNX = "onnx"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"

    @classmethod
    def add(cls, name: str) -> "Target":
        """Make a name from outside this package a target, as `--target` and manifests spell it."""
        member = str.__new__(cls, name)
        member._name_, member._value_ = name.upper().replace("-", "_"), name
        cls._member_map_[member._name_] = cls._value2member_map_[name] = member
        cls._member_names_.append(member._name_)
        return member

    @classmethod
    def _missing_(cls, value: object) -> "Target | None":
        # pydantic has noted the members from before `add`.
        found = cls._value2member_map_.get(value) if isinstance(value, str) else None
        return found if isinstance(found, cls) else None
