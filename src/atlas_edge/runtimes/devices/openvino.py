"""Which of OpenVINO's devices runs a model: the processor, Intel's GPU or NPU, or several of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.runtimes.int8_sums import int8_properties
from atlas_edge.runtimes.openvino_library import openvino_library

InferencePrecision = Literal["f32", "f16", "bf16"]

CPU = "CPU"
# They hand the work on to others, which are listed after a colon.
_VIRTUAL = ("AUTO", "HETERO", "MULTI")
_FORMATS: dict[InferencePrecision, str] = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
_DRIVERS = {
    "GPU": "install Intel's graphics driver (on Linux its compute runtime, which brings OpenCL)",
    "NPU": "install Intel's NPU driver",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device, or several behind one of OpenVINO's virtual ones.

    Attributes:
        name: As OpenVINO compiles for it: `CPU`, `GPU.1`, `AUTO:GPU,CPU`.
        members: The devices that may get work.
    """

    name: str
    members: tuple[str, ...]

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor and nothing else, without a virtual device before it."""
        return self.name == CPU

    @property
    def has_cpu(self) -> bool:
        """Whether the processor may get work."""
        return CPU in self.members

    def precision(self, core: Any, wanted: InferencePrecision) -> InferencePrecision:
        """What layers that are not quantized are computed in: `wanted`, or what every member knows.

        Args:
            core: `openvino.Core`.
            wanted: Of the bundle.
        """
        known = frozenset.intersection(*(float_formats(core, member) for member in self.members))
        if _FORMATS[wanted] in known:
            return wanted
        # A processor without them emulates them; GPU and NPU compute in FP16, and an NPU in nothing else.
        others: tuple[InferencePrecision, ...] = ("f32", "f16") if wanted == "f32" or self.has_cpu else ("f16", "f32")
        return next((other for other in others if _FORMATS[other] in known), "f32")

    def properties(self, cpu: Mapping[str, Any]) -> dict[str, Any]:
        """What to compile with, given what the processor is to be told.

        Args:
            cpu: Properties of the CPU plugin.
        """
        if self.is_cpu:
            return dict(cpu)
        return {"DEVICE_PROPERTIES": {CPU: dict(cpu)}} if self.has_cpu and cpu else {}

    def for_int8(self, *, portable: bool = False) -> "tuple[Device, dict[str, Any]]":
        """The device on which an INT8 model comes out right, and what the processor must be told for it.

        A processor that adds inexactly computes a portable model rightly, too, but faster in floating point.

        Other devices add 8-bit products exactly. Where the processor does not, what it must be told does not reach it
        through a virtual device (2026.4): instead of `AUTO` the first of the others is taken, or the processor itself.

        Raises:
            UsageError: The processor is among several devices that share the work, and would compute its part wrongly.
        """
        changed = int8_properties() if self.has_cpu else {}
        if self.is_cpu or not changed:
            return self, changed
        if portable:
            return self, {}
        if not self.name.startswith("AUTO"):
            raise UsageError(
                f"--device {self.name}: this processor (no VNNI, no AMX) would get its part of an INT8 bundle wrong",
                hint="leave CPU out of the list, or take an fp32 bundle",
            )
        first = next((member for member in self.members if member != CPU), CPU)
        return Device(name=first, members=(first,)), changed if first == CPU else {}


def find_device(core: Any, wanted: str | None) -> Device:
    """The device that a user names.

    Args:
        core: `openvino.Core`.
        wanted: `CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO`, `HETERO:GPU,CPU`, in any case; the processor when None.

    Raises:
        UsageError: OpenVINO knows no such device.
        RuntimeMissing: It is not in this machine, or its driver is not.
    """
    name, _, listed = (wanted or CPU).upper().replace(" ", "").partition(":")
    here: tuple[str, ...] = tuple(core.available_devices)
    if name not in _VIRTUAL:
        if listed:
            raise UsageError(
                f"--device {wanted}: only {', '.join(_VIRTUAL)} take a list", hint=f"--device AUTO:{name},{listed}"
            )
        return Device(name=_present(name, wanted, here), members=(name,))
    members = tuple(_present(member, wanted, here) for member in (listed.split(",") if listed else here))
    return Device(name=f"{name}:{','.join(members)}", members=members)


def float_formats(core: Any = None, device: str = CPU) -> frozenset[str]:
    """Number formats that an OpenVINO plugin says it computes in here: `FP32`, `BF16`, ...; it knows the processor.

    Args:
        core: An `openvino.Core`; a new one when None.
        device: Name of the device.
    """
    return frozenset((core or openvino_library().Core()).get_property(device, "OPTIMIZATION_CAPABILITIES"))


def gpus() -> tuple[str, ...]:
    """OpenVINO's GPUs of this machine; empty without OpenVINO.

    An NPU is none of them: it compiles for minutes, which is for whoever names it.
    """
    try:
        return tuple(name for name in openvino_library().Core().available_devices if name.partition(".")[0] == "GPU")
    except Exception:  # a broken installation or driver raises anything
        return ()


def _present(name: str, wanted: str | None, here: tuple[str, ...]) -> str:
    # With two GPUs they are GPU.0 and GPU.1, and GPU is the first.
    if name in here or any(device.partition(".")[0] == name for device in here):
        return name
    kind = name.partition(".")[0]
    if kind not in (CPU, *_DRIVERS):
        raise UsageError(
            f"--device {wanted}: OpenVINO knows no {name}",
            hint="CPU, GPU, GPU.1, NPU, AUTO, AUTO:GPU,CPU, HETERO:GPU,CPU",
        )
    raise RuntimeMissing(
        f"--device {wanted}: no {name} here; OpenVINO finds {', '.join(here)}",
        hint=f"{_DRIVERS.get(kind, 'name one of these')}, or leave --device out: it then runs on the processor",
    )
