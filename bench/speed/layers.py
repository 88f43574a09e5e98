"""Where an encoder's time goes: every layer as its runtime executed it, grouped by what it is for."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bundle import read_manifest
from atlas_edge.errors import InputError
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.int8_sums import int8_properties
from atlas_edge.spec import EncoderSpec, Target

GROUPS = ("patch embedding", "attention", "MLP", "norm", "conversion", "other")

_WARM_UP = 3
_NORMS = frozenset({"MVN", "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMS"})
_CONVERSIONS = frozenset(
    {"Convert", "Reorder", "Cast", "ReorderInput", "ReorderOutput", "QuantizeLinear", "DequantizeLinear",
     "DynamicQuantizeLinear", "FakeQuantize"}
)  # fmt: skip
_PRODUCTS = frozenset(
    {"FullyConnected", "FullyConnectedCompressed", "FullyConnectedQuantized", "FullyConnectedQuantizedLegacy",
     "MatMul", "Gemm", "QGemm", "FusedMatMul", "FusedGemm", "QLinearMatMul", "MatMulInteger",
     "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer as executed.

    Attributes:
        name: The runtime's name of it.
        kind: The runtime's type, such as `FullyConnected`.
        implementation: Kernel or provider, such as `brgemm_avx512_I8`.
        width: Last axis of its output, 0 where unknown.
        rank: Axes of its output.
        ms: Median time of a call.
    """

    name: str
    kind: str
    implementation: str
    width: int
    rank: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Times of one bundle.

    Attributes:
        runtime: Which profile.
        batch: Tiles a call.
        total_ms: Sum over the layers; a profiled call is slower than one that is not.
        group_ms: Group -> time; the groups sum to the total.
        group_share: Group -> share of the total, 0-1.
        slowest: The ten slowest layers.
    """

    runtime: str
    batch: int
    total_ms: float
    group_ms: dict[str, float]
    group_share: dict[str, float]
    slowest: tuple[Layer, ...]


def layer_times(bundle: Path, *, batch: int = 8, calls: int = 5, threads: int | None = None) -> LayerTimes:
    """Profile an OpenVINO or ONNX Runtime bundle.

    Args:
        bundle: Bundle folder.
        batch: Tiles a call; the bundle's own where it is fixed.
        calls: Measured calls.
        threads: Inference threads; the runtime's own choice when None.

    Raises:
        InputError: The bundle is of a target without such a profile.
        RuntimeMissing: Its runtime is not installed.
    """
    manifest = read_manifest(bundle)
    size = manifest.execution.batch or batch
    side = manifest.encoder.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    path = bundle / manifest.execution.model_file
    if manifest.target is Target.OPENVINO:
        runtime, layers = "OpenVINO", _openvino(path, manifest, tiles, calls, threads)
    elif manifest.target is Target.ONNX:
        runtime, layers = "ONNX Runtime", _onnxruntime(path, tiles, calls, threads)
    else:
        raise InputError(
            f"{bundle} is a {manifest.target} bundle: layer times come from OpenVINO and ONNX Runtime",
            hint="profile an engine with the vendor's own tool",
        )
    grouped = dict.fromkeys(GROUPS, 0.0)
    for layer, group in zip(layers, group_layers(layers, manifest.encoder), strict=True):
        grouped[group] += layer.ms
    total = sum(grouped.values())
    return LayerTimes(
        runtime=runtime,
        batch=size,
        total_ms=total,
        group_ms=grouped,
        group_share={name: ms / total for name, ms in grouped.items()},
        slowest=tuple(sorted(layers, key=lambda layer: -layer.ms)[:10]),
    )


def group_layers(layers: Iterable[Layer], spec: EncoderSpec) -> list[str]:
    """The group of each layer of a transformer, given in the order of execution.

    Runtimes fuse and rename layers, so names say little; the order does: before the first norm lies the patch
    embedding, and after each norm the width of the first product tells attention (3 D, or D for separate q, k, v)
    from the MLP (anything else). What lies up to the next norm (softmax, GELU, residual) belongs to the same block.
    What follows the last norm without a product is `other`, and so is all of a CNN but its norms and conversions.
    """
    width = spec.embed_dim // (2 if spec.pooling == "cls+mean" else 1)
    groups: list[str] = []
    waiting: list[int] = []
    block = "patch embedding" if spec.patch is not None else "other"
    for layer in layers:
        groups.append(block)
        if layer.kind in _NORMS:
            groups[-1] = "norm"
            block = "waiting" if spec.patch is not None else "other"
        elif layer.kind in _CONVERSIONS:
            groups[-1] = "conversion"
        elif block == "waiting":
            waiting.append(len(groups) - 1)
            if layer.kind in _PRODUCTS and layer.rank in (2, 3):
                block = "attention" if layer.width in (width, 3 * width) else "MLP"
                for index in waiting:
                    groups[index] = block
                waiting = []
    return ["other" if group == "waiting" else group for group in groups]


def _openvino(path: Path, manifest: Manifest, tiles: NDArray[np.uint8], calls: int, threads: int | None) -> list[Layer]:
    from atlas_edge.cli import require_module

    require_module("openvino", extra="openvino")
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({model.inputs[0]: list(tiles.shape)})
    properties: dict[str, Any] = {
        "PERF_COUNT": True,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": manifest.execution.inference_precision,
        "ENABLE_CPU_PINNING": False,
        **int8_properties(),
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", properties)
    shapes = {node.get_friendly_name(): _shape(node) for node in compiled.get_runtime_model().get_ordered_ops()}
    request = compiled.create_infer_request()
    for _ in range(_WARM_UP):
        request.infer({0: tiles})
    runs = []
    for _ in range(calls):
        request.infer({0: tiles})
        runs.append([info.real_time.total_seconds() * 1e3 for info in request.profiling_info])
    times = np.median(np.array(runs), axis=0)
    return [
        Layer(
            name=info.node_name,
            kind=info.node_type,
            implementation=info.exec_type,
            width=shapes.get(info.node_name, (0,))[-1],
            rank=len(shapes.get(info.node_name, ())),
            ms=float(ms),
        )
        for info, ms in zip(request.profiling_info, times, strict=True)
        if ms > 0
    ]


def _shape(node: Any) -> tuple[int, ...]:
    shape = node.get_output_partial_shape(0) if node.get_output_size() else None
    if shape is None or shape.is_dynamic or len(shape) == 0:
        return (0,)
    return tuple(int(length.get_length()) for length in shape)


def _onnxruntime(path: Path, tiles: NDArray[np.uint8], calls: int, threads: int | None) -> list[Layer]:
    from atlas_edge.cli import require_module

    require_module("onnxruntime", extra="onnx")
    import onnxruntime

    from atlas_edge.runtimes.onnxruntime import EXACT_INT8_SUMS

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(*EXACT_INT8_SUMS)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        if threads is not None:
            options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(_WARM_UP + calls):
            session.run(None, {session.get_inputs()[0].name: tiles})
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return onnxruntime_layers(events, warm_up=_WARM_UP)


def onnxruntime_layers(events: list[dict[str, Any]], *, warm_up: int = 0) -> list[Layer]:
    """The layers of an ONNX Runtime profile, with the median over the calls after the first `warm_up`."""
    kernels = [event for event in events if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")]
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in kernels:
        # A fused node may share its name with another: the index in the graph is its own.
        runs.setdefault(f"{event['args']['node_index']} {event['name']}", []).append(event)
    found = []
    for seen in runs.values():
        shape = [
            int(length) for one in seen[-1]["args"]["output_type_shape"][:1] for length in next(iter(one.values()))
        ]
        found.append(
            Layer(
                name=str(seen[-1]["name"]).removesuffix("_kernel_time"),
                kind=str(seen[-1]["args"]["op_name"]),
                implementation=str(seen[-1]["args"].get("provider", "")),
                width=shape[-1] if shape else 0,
                rank=len(shape),
                ms=float(np.median([event["dur"] for event in seen[warm_up:]])) / 1e3,
            )
        )
    return found
