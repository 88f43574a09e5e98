"""Parse a graph and build an engine, as a process of its own.

`export.tensorrt.build_engine` runs this module: the native libraries print to the terminal, keep state (the first
logger stays) and may end the process, none of which may reach the caller. The request comes as JSON on stdin and
the answer goes to a file. Only names in tests/export/tensorrt_api are used, for either library.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from atlas_edge.runtimes.tensorrt_library import collecting_logger
from atlas_edge.system.atomic import write_atomic


class EngineOptions(BaseModel):
    """What can be chosen of an engine.

    Attributes:
        compute_capabilities: GPU generations (`8.9`); the library's default when empty. RTX only.
        batch_profile: Smallest, optimal and largest batch.
        refittable: Weights can be replaced later.
        strip_weights: Leave the weights out of the engine; they are read from the ONNX beside it when it is loaded.
        hardware_compatible: Also run on later GPU generations (Ampere and up), for some speed. Enterprise only.
        version_compatible: Also run under later versions, for some speed. Enterprise only.
        batch_independent: A tile's embedding does not depend on its place in the batch or on the others.
        timing_cache: Keep build-time measurements here, and use those that are there. Enterprise only.
        optimization_level: 0 to 5; the library's default when None.
        float_linears: Layers that the recipe leaves unquantized on purpose, such as `blocks.3.mlp.fc2` or `*.fc2`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    compute_capabilities: tuple[str, ...] = ()
    batch_profile: tuple[int, int, int] = (1, 32, 64)
    refittable: bool = False
    strip_weights: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    batch_independent: bool = False
    timing_cache: Path | None = None
    optimization_level: int | None = None
    float_linears: tuple[str, ...] = ()


DEFAULTS = EngineOptions()


class BuildRequest(EngineOptions):
    """What to build; paths are absolute."""

    module: str
    onnx_path: Path
    engine_path: Path
    answer_path: Path


class ParserFault(BaseModel):
    """One error of the ONNX parser, as the parser words it."""

    model_config = ConfigDict(frozen=True)

    node: str
    operator: str
    description: str


class BuildAnswer(BaseModel):
    """What came of it: an engine when `error` is empty and there are no parser faults."""

    model_config = ConfigDict(frozen=True)

    version: str
    layers: int = 0
    build_seconds: float = 0.0
    parser_faults: tuple[ParserFault, ...] = ()
    error: str = ""
    log: tuple[str, ...] = ()


def main() -> None:
    """Read a `BuildRequest` from stdin, build, write the `BuildAnswer`."""
    request = BuildRequest.model_validate_json(sys.stdin.read())
    trt = importlib.import_module(request.module)
    answer = build(trt, request)
    request.answer_path.write_text(answer.model_dump_json(), encoding="utf-8")


def build(trt: Any, request: BuildRequest) -> BuildAnswer:
    """Build with whichever library `trt` is.

    Args:
        trt: The `tensorrt` or `tensorrt_rtx` module.
        request: What to build; the engine is written to `request.engine_path`.
    """
    log: list[str] = []
    version = str(trt.__version__)
    builder = trt.Builder(collecting_logger(trt, log))
    # TensorRT 11 and TensorRT-RTX are always strongly typed; 10.13 to 10.16 need the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(request.onnx_path)):
        return BuildAnswer(version=version, parser_faults=_faults(parser), log=tuple(log))
    config = builder.create_builder_config()
    problem = _configure(trt, builder, network, config, request)
    if problem:
        return BuildAnswer(version=version, error=problem, log=tuple(log))
    started = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if engine is None:
        return BuildAnswer(version=version, error="the builder returned no engine", log=tuple(log))
    request.engine_path.write_bytes(memoryview(engine))
    _keep_timing_cache(config, request)
    return BuildAnswer(version=version, layers=network.num_layers, build_seconds=seconds, log=tuple(log))


def _faults(parser: Any) -> tuple[ParserFault, ...]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return tuple(
        ParserFault(node=error.node_name(), operator=error.node_operator(), description=error.desc())
        for error in errors
    )


def _configure(trt: Any, builder: Any, network: Any, config: Any, request: BuildRequest) -> str:
    """Apply the request; returns the problem in one line, or nothing."""
    flag = trt.BuilderFlag
    # On by default, and it rounds FP32 matrix products to 10 bits: an FP32 engine must not.
    config.clear_flag(flag.TF32)
    if request.refittable:
        config.set_flag(flag.REFIT)
    if request.strip_weights:
        # The weights come back from the very ONNX in the bundle. REFIT_IDENTICAL rather than REFIT: with REFIT,
        # TensorRT 11.3 may drop the bias of a matrix product (its release notes, known issues).
        config.set_flag(flag.STRIP_PLAN)
        config.set_flag(flag.REFIT_IDENTICAL)
    if request.batch_independent:
        config.set_flag(flag.DISTRIBUTIVE_INDEPENDENCE)
    if request.version_compatible:
        config.set_flag(flag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.timing_cache is not None:
        known = request.timing_cache.read_bytes() if request.timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            return f"{request.timing_cache} was measured on another GPU or by another version"
    if request.compute_capabilities:
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, name in enumerate(request.compute_capabilities):
            member = getattr(trt.ComputeCapability, "SM" + name.replace(".", ""))
            if not config.set_compute_capability(member, index):
                return f"the library takes no compute capability {name}"
    return _add_profile(builder, network, config, request.batch_profile)


def _add_profile(builder: Any, network: Any, config: Any, batch_profile: tuple[int, int, int]) -> str:
    tiles = network.get_input(0)
    batch, *rest = tuple(tiles.shape)
    smallest, optimum, largest = batch_profile
    if batch != -1:
        if {batch} != {smallest, optimum, largest}:
            return f"the graph has a fixed batch of {batch}, the profile asks for {smallest},{optimum},{largest}"
        return ""
    profile = builder.create_optimization_profile()
    profile.set_shape(tiles.name, (smallest, *rest), (optimum, *rest), (largest, *rest))
    if config.add_optimization_profile(profile) < 0:
        return f"the library refused the batch profile {smallest},{optimum},{largest}"
    return ""


def _keep_timing_cache(config: Any, request: BuildRequest) -> None:
    if request.timing_cache is not None:
        write_atomic(request.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))


if __name__ == "__main__":
    main()
