"""What of an encoder's graph must stay in FP32 in an FP16 graph, measured on calibration tiles."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.models.graph import load_onnx, open_watched
from atlas_edge.quantize.onnx.half import cast_onnx
from atlas_edge.spec import Precision

if TYPE_CHECKING:
    import onnx

# Calibration tiles that are enough to look at.
RANGE_TILES = 8
HALF_MAX = float(np.finfo(np.float16).max)
# Calibration tiles don't hold every tile's largest value.
_HEADROOM = 4.0
# They hand values on or hold none: measuring where the values are computed is enough.
_CONSTANT = {"Constant", "ConstantOfShape", "DequantizeLinear"}
_CLOSE, _CHECKED_TILES = 0.999, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfRange:
    """The largest activations, and what follows from them.

    Attributes:
        largest: Largest absolute value of what FP16 has to hold: of everything outside `float32_values`.
        node: Node that computes it.
        headroom: 65504 / `largest`, at least 4.
        largest_float32: Largest absolute value inside `float32_values`; 0 where there are none.
        float32_values: Outputs of the nodes that stay in FP32 since they compute or read more than FP16 should hold.
        tiles: Tiles looked at.
    """

    largest: float
    node: str
    headroom: float
    largest_float32: float
    float32_values: tuple[str, ...]
    tiles: int


def half_range(path: Path, tiles: NDArray[np.uint8]) -> HalfRange:
    """Run a graph in full precision and look at everything that it computes.

    A node stays in FP32 where its result, or what it reads, comes within a factor of 4 of FP16's largest number: the
    residual stream of a network with massive activations, the LayerNorms that read it and the products that write it,
    or a softmax over large logits. Pixels before normalisation stay in FP32 in every graph that is made here.

    Args:
        path: ONNX whose floating-point tensors are FP32; Q/DQ pairs may stand in it.
        tiles: `(N, H, W, 3)` uint8; a few calibration tiles.

    Raises:
        InputError: A value is not finite in full precision.
    """
    import onnx

    model = load_onnx(path, weights=False)
    watched = _watched(model)
    # Without the optimiser, which would fuse away tensors that are watched.
    peaks = largest_values(path, dict.fromkeys(watched, onnx.TensorProto.FLOAT), tiles, optimized=False)
    broken = next((name for name, peak in peaks.items() if not np.isfinite(peak)), None)
    if broken is not None:
        raise InputError(
            f"node {watched[broken]} computes {peaks[broken]} on calibration tiles, in full precision",
            hint="the weights are broken: train or save the model again",
        )
    large = {name for name, peak in peaks.items() if peak * _HEADROOM > HALF_MAX}
    wide = {
        name
        for node in model.graph.node
        if large & {*node.input, *node.output}
        for name in node.output
        if name in watched
    }
    narrow = {name: peak for name, peak in peaks.items() if name not in wide}
    where = max(narrow, key=lambda name: narrow[name], default="")
    largest = narrow.get(where, 0.0)
    return HalfRange(
        largest=largest,
        node=watched.get(where, ""),
        headroom=HALF_MAX / max(largest, 1e-30),
        largest_float32=max((peaks[name] for name in wide), default=0.0),
        float32_values=tuple(name for name in watched if name in wide),
        tiles=len(tiles),
    )


def cast_in_range(path: Path, out: Path, tiles: NDArray[np.uint8]) -> HalfRange:
    """Write an FP16 graph in which FP32 stays where `half_range` wants it; with such parts the result is checked.

    Args:
        path: ONNX in full precision, as in `half_range`.
        out: File to write.
        tiles: `(N, H, W, 3)` uint8; a few calibration tiles.

    Raises:
        InputError: As `half_range`, `check_half_graph` and `cast_onnx`.
    """
    found = half_range(path, tiles)
    cast_onnx(path, out, Precision.FP16, float32_values=found.float32_values)
    if found.float32_values:
        check_half_graph(out, path, tiles[:_CHECKED_TILES])
    return found


def check_half_graph(path: Path, fp32_path: Path, tiles: NDArray[np.uint8]) -> None:
    """Run an FP16 graph with FP32 parts and compare it with what it was made from.

    ONNX Runtime's optimiser is switched off: it removes pairs of Casts, and an overflow between them with it.

    Raises:
        InputError: An embedding is not finite, or its cosine with the full-precision one is below 0.999.
    """
    half, full = (_embed(graph, tiles) for graph in (path, fp32_path))
    norms = np.linalg.norm(half, axis=1) * np.linalg.norm(full, axis=1)
    cosine = (half * full).sum(axis=1) / np.maximum(norms, 1e-12)
    if not np.min(cosine) >= _CLOSE:  # also true for NaN
        raise InputError(
            f"the FP16 graph overflows on calibration tiles: smallest cosine {np.min(cosine):.4f}",
            hint="use --precision fp32 or bf16",
        )


def largest_values(
    path: Path, values: dict[str, int], tiles: NDArray[np.uint8], *, optimized: bool
) -> dict[str, float]:
    """Largest absolute value of each tensor of a graph over some tiles; NaN where one is not a number.

    Args:
        path: ONNX.
        values: Tensors and their ONNX types.
        tiles: `(N, H, W, 3)` uint8.
        optimized: Let ONNX Runtime optimise, which may fuse tensors away.
    """
    session = open_watched(path, values, optimized=optimized)
    peaks = dict.fromkeys(values, 0.0)
    for piece in _pieces(session, tiles):
        for name, value in zip(values, session.run(list(values), {"tiles": piece}), strict=True):
            # np.maximum and max keep NaN.
            peaks[name] = float(np.maximum(peaks[name], np.abs(value.astype(np.float32)).max(initial=0.0)))
    return peaks


def _watched(model: "onnx.ModelProto") -> dict[str, str]:
    """Every computed FP32 tensor and its node's name, but for pixels, which nothing casts to FP16."""
    import onnx

    typed = [*model.graph.value_info, *model.graph.output]
    floats = {info.name for info in typed if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    computed = (node for node in model.graph.node if node.op_type not in _CONSTANT)
    return {name: node.name for node in computed for name in node.output if name in floats}


def _embed(path: Path, tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    session = open_watched(path, {}, optimized=False)
    found = [session.run(None, {"tiles": piece})[0] for piece in _pieces(session, tiles)]
    return np.asarray(np.concatenate(found), np.float64)[: len(tiles)]


def _pieces(session: Any, tiles: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """One tile at a time, or the graph's fixed batch, filled up with tiles from the start."""
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else 1
    filled = tiles[np.arange(-(-len(tiles) // step) * step) % len(tiles)]
    return [filled[at : at + step] for at in range(0, len(filled), step)]
