"""Where an encoder's time goes: every layer as its runtime executed it, grouped by what it is for."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas_edge.bundle import model_folder, read_manifest
from atlas_edge.errors import InputError
from atlas_edge.runtimes.registry import Layer, runtime_of
from atlas_edge.spec import EncoderSpec

GROUPS = ("patch embedding", "attention", "MLP", "norm", "conversion", "other")

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
    runtime = runtime_of(manifest.target)
    if runtime.layers is None:
        raise InputError(
            f"{bundle} is a {manifest.target} bundle: layer times come from OpenVINO and ONNX Runtime",
            hint="profile an engine with the vendor's own tool",
        )
    layers = runtime.layers(model_folder(bundle), manifest, tiles, calls, threads)
    grouped = dict.fromkeys(GROUPS, 0.0)
    for layer, group in zip(layers, group_layers(layers, manifest.encoder), strict=True):
        grouped[group] += layer.ms
    total = sum(grouped.values())
    return LayerTimes(
        runtime=runtime.title,
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
