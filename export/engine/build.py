"""TensorRT engines: which of the two libraries builds them, and the build itself.

A build is refused before it starts where the graph breaks a rule (`graph_rules`) or an option does not exist for the
library. The native builder then runs in a child process (`child`).
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.export.engine.child import DEFAULTS, BuildAnswer, BuildRequest, EngineOptions
from atlas_edge.export.graph.rules import GraphCheck, check_graph
from atlas_edge.runtimes.tensorrt_library import (
    ENTERPRISE,
    RTX,
    LibraryName,
    TensorRTLibrary,
    check_version,
    installed_version,
)
from atlas_edge.spec import Precision
from atlas_edge.system.child import run_module
from atlas_edge.system.gpu_probe import GpuProbe, probe_gpu

# What RTX compiles where: Turing has no FP32 matrix product there, FP8 begins with Ada.
_FP32_SINCE, _FP8_SINCE = (8, 0), (8, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTChoice:
    """The library that builds, its version, and why it was chosen."""

    library: TensorRTLibrary
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What was built.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`.
        compute_capabilities: GPU generations that the engine was built for, such as `8.9`.
        batch_profile: Smallest, optimal and largest batch.
        build_seconds: The builder alone, without start and parsing.
        layers: Layers of the parsed network, before fusion.
        options: Build options that were on.
        graph: What the rules found in the ONNX.
    """

    library: LibraryName
    version: str
    precision: Precision
    compute_capabilities: tuple[str, ...]
    batch_profile: tuple[int, int, int]
    build_seconds: float
    size_bytes: int
    layers: int
    options: tuple[str, ...]
    graph: GraphCheck


def find_tensorrt(library: TensorRTLibrary = ENTERPRISE, *, probe: GpuProbe | None = None) -> TensorRTChoice:
    """Choose the library that builds.

    TensorRT-RTX is taken where it was asked for. Enterprise TensorRT is where it is installed beside a usable GPU,
    which it needs in order to build, and TensorRT-RTX stands in for it otherwise.

    Args:
        library: What was asked for.
        probe: What the NVIDIA driver said; asked when None and needed.

    Raises:
        RuntimeMissing: No library that can build here; the hint installs one.
    """
    enterprise, rtx = installed_version(ENTERPRISE), installed_version(RTX)
    if library is RTX:
        return _choose(RTX, rtx, "TensorRT-RTX was asked for")
    if enterprise is None:
        return _choose(RTX, rtx, "TensorRT is not installed; TensorRT-RTX builds for named GPUs")
    probe = probe or probe_gpu()
    if probe.gpus:
        return _choose(ENTERPRISE, enterprise, f"TensorRT builds for this machine's {probe.gpus[0].name}")
    if rtx is None:
        raise RuntimeMissing(
            f"TensorRT {enterprise} builds on the GPU that it builds for, and here {probe.problem}",
            hint=f"{RTX.install_hint} (builds without a GPU), or run atlas-export rebuild on the workstation",
        )
    return _choose(RTX, rtx, f"TensorRT {enterprise} needs a GPU and {probe.problem}; TensorRT-RTX builds without one")


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    *,
    library: TensorRTLibrary,
    precision: Precision,
    options: EngineOptions = DEFAULTS,
    timeout_s: float = 4 * 3600.0,
) -> EngineReport:
    """Check a graph and build an engine from it.

    Args:
        onnx_path: Graph with `tiles` uint8 NHWC in and `embedding` float32 out, types as the engine shall have them.
        engine_path: Where the engine goes.
        library: From `find_tensorrt`.
        precision: What the graph is meant to be; the rules depend on it.
        options: What else is chosen.
        timeout_s: The build is ended after this long.

    Raises:
        UsageError: An option that this library does not have, or a GPU that cannot run this precision.
        InputError: The graph breaks a rule, or the parser or the builder refuses it.
        RuntimeMissing: The library or the GPU that it needs is not here.
    """
    capabilities = check_options(library, precision, options)
    graph = check_graph(onnx_path, precision=precision, float_linears=options.float_linears)
    cache = options.timing_cache
    if cache is not None:
        # Not after the minutes of the build.
        cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            "onnx_path": onnx_path.resolve(),
            "engine_path": Path(folder) / "engine",
            "answer_path": Path(folder) / "answer.json",
            "timing_cache": None if cache is None else cache.resolve(),
        }
        chosen = {**dict(options), "compute_capabilities": capabilities, **paths}
        request = BuildRequest(module=library.module, **chosen)
        answer = _run_child(library, request, timeout_s)
        _raise_refusal(library, onnx_path, request, answer)
        data = request.engine_path.read_bytes()
    engine_path.write_bytes(data)
    return EngineReport(
        library=library.module,
        version=answer.version,
        precision=precision,
        compute_capabilities=capabilities,
        batch_profile=options.batch_profile,
        build_seconds=answer.build_seconds,
        size_bytes=len(data),
        layers=answer.layers,
        options=tuple(name for name, value in options if value is True),
        graph=graph,
    )


def check_options(library: TensorRTLibrary, precision: Precision, options: EngineOptions) -> tuple[str, ...]:
    """Refuse what the library cannot do, before any work.

    Returns:
        The compute capabilities that will be built for.

    Raises:
        UsageError: Names the option and what mends it.
    """
    smallest, optimum, largest = options.batch_profile
    if not 1 <= smallest <= optimum <= largest:
        raise UsageError(
            f"batch profile {smallest},{optimum},{largest} is not 1 <= min <= opt <= max", hint="--batch 1,32,64"
        )
    refused = {
        "--hardware-compatible": options.hardware_compatible and not library.hardware_compatible,
        "--version-compatible": options.version_compatible and not library.version_compatible,
        "--timing-cache": options.timing_cache is not None and not library.timing_cache,
    }
    for option, is_refused in refused.items():
        if is_refused:
            raise UsageError(
                f"{library.title} has no {option}: its engines name their GPUs and are compiled where they are loaded",
                hint=f"leave {option} out, and name the GPUs with --compute-capability",
            )
    if options.compute_capabilities and not library.builds_without_gpu:
        raise UsageError(
            f"{library.title} builds for the GPU of this machine and takes no --compute-capability",
            hint="leave it out, or use --target tensorrt-rtx",
        )
    capabilities = options.compute_capabilities or library.default_compute_capabilities
    if precision is Precision.FP8 and not options.compute_capabilities:
        capabilities = tuple(name for name in capabilities if _pair(name) >= _FP8_SINCE)
    for name in capabilities:
        _check_capability(library, name, precision)
    return capabilities


def _check_capability(library: TensorRTLibrary, name: str, precision: Precision) -> None:
    if name not in library.compute_capabilities:
        raise UsageError(
            f"{library.title} takes no compute capability {name!r}, it takes {', '.join(library.compute_capabilities)}",
            hint="--compute-capability 8.6,8.9,12.0 (RTX 30, 40 and 50)",
        )
    since = {Precision.FP8: _FP8_SINCE, Precision.FP32: _FP32_SINCE}.get(precision, (0, 0))
    if _pair(name) < since:
        oldest = ".".join(map(str, since))
        raise UsageError(
            f"{precision} needs compute capability {oldest} or later, {name} is older",
            hint=f"drop {name} from --compute-capability, or use --precision int8 or fp16",
        )


def _pair(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor or 0)


def _choose(library: TensorRTLibrary, version: str | None, reason: str) -> TensorRTChoice:
    if version is None:
        raise RuntimeMissing(
            f"neither TensorRT nor {RTX.title} is installed"
            if library is RTX and installed_version(ENTERPRISE) is None
            else f"{library.title} is not installed",
            hint=f"{library.install_hint} (builds without a GPU)" if library is RTX else library.install_hint,
        )
    check_version(library, version)
    return TensorRTChoice(library=library, version=version, reason=reason)


def _run_child(library: TensorRTLibrary, request: BuildRequest, timeout_s: float) -> BuildAnswer:
    try:
        child = run_module("atlas_edge.export.engine.child", stdin=request.model_dump_json(), timeout_s=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{library.title} did not finish {request.onnx_path.name} within {timeout_s:.0f} s",
            hint="build for one GPU generation at a time (--compute-capability 8.9), or with a smaller --batch",
        ) from error
    if not request.answer_path.is_file():
        # The native library ended the process, or could not be loaded.
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeMissing(
            f"{library.title} ended with code {child.returncode} while it built {request.onnx_path.name}: {last[0]}",
            hint=library.install_hint,
        )
    return BuildAnswer.model_validate_json(request.answer_path.read_text(encoding="utf-8"))


def _raise_refusal(library: TensorRTLibrary, onnx_path: Path, request: BuildRequest, answer: BuildAnswer) -> None:
    if answer.parser_faults:
        fault = answer.parser_faults[0]
        raise InputError(
            f"{onnx_path.name}: {library.title} {answer.version} cannot parse node {fault.node} ({fault.operator}): "
            f"{_without_noise(fault.description)}",
            hint="export the graph again with atlas-export, which writes opset 20",
        )
    if not answer.error:
        return
    said = [text for text in map(_without_noise, answer.log) if text]
    reason = f"{answer.error}: {said[0]}" if said else answer.error
    if request.strip_weights or request.refittable:
        raise RuntimeMissing(
            f"{onnx_path.name}: {library.title} {answer.version} builds a refittable or stripped engine only beside "
            f"the GPU that it is for ({reason})",
            hint="leave --refit and --strip out, or build on the workstation: atlas-export rebuild BUNDLE",
        )
    raise InputError(
        f"{onnx_path.name}: {library.title} {answer.version}: {reason}",
        hint="change the option that the message names, or export the graph again with atlas-export",
    )


def _without_noise(message: str) -> str:
    """Drop what TensorRT adds for its own developers, and the driver's absence, which is no fault of the graph."""
    lines = [line for line in message.splitlines() if "cudaError 35" not in line]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"\[[^\[\]]*\.(cpp|h):\d+[^\[\]]*\]\s*", "", text)
    text = re.sub(r"\s*In \w+ at /_src/\S+?(?=\)|$|\s)", "", text)
    return text.strip()
