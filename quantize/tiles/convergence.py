"""How many calibration tiles are enough: activation ranges of the model itself, watched while tiles are added."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino as ov

STEP_TILES = 32
# A scale that is 1 % too small clips 1 % of the range of one tile in hundreds: below the rounding step of 1 / 127.
TOLERANCE = 0.01
# One quiet addition may be luck.
PATIENCE = 2

# Weights that are fitted to the tiles go on gaining where ranges have long stood still (docs/quantization.md).
FITTED_TILES = 256

_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """How the ranges moved.

    Attributes:
        tiles: Tiles after which they stood still, or all of them.
        converged: Whether they stood still.
        layers: Activations watched: every input of a matrix product or convolution that is not a weight.
        movement: Mean growth of the ranges at each addition, as a share of the range: the first entry is the second
            addition.
        step: Tiles an addition.
        tolerance: Movement below which an addition is quiet.
    """

    tiles: int
    converged: bool
    layers: int
    movement: tuple[float, ...]
    step: int = STEP_TILES
    tolerance: float = TOLERANCE

    def enough(self, *, fitted: bool) -> int:
        """Tiles to calibrate on; more where weights are fitted to them (`fakequant.fake_quantize`)."""
        return max(self.tiles, FITTED_TILES) if fitted else self.tiles

    def as_dict(self) -> dict[str, Any]:
        """For manifests and reports."""
        return asdict(self)

    def sentence(self) -> str:
        """What came of it, in one line."""
        if not self.movement:
            return f"{self.tiles} tiles are too few to tell whether scales stand still"
        last = f"the last {self.step} moved them by {self.movement[-1]:.1%}"
        if self.converged:
            return f"scales stand still from {self.tiles} tiles on: {last}"
        return f"scales still move after {self.tiles} tiles ({last})"


def watch_ranges(graph: Path, tiles: NDArray[np.uint8], *, tolerance: float = TOLERANCE) -> Convergence:
    """Add tiles until two additions in a row move the ranges by less than the tolerance, on average over layers.

    The range of a layer is the largest absolute activation so far. The model runs in the CPU's fastest floating-point
    format: a range needs no more than BF16's 8 bits here.

    Args:
        graph: Full-precision ONNX with a dynamic batch.
        tiles: `(N, H, W, 3)` uint8, each beginning of which is balanced; a single addition is not watched, since
            nothing follows from it.
        tolerance: Movement, a share of the range, that counts as standing still.
    """
    ranges: NDArray[np.float32] = np.empty(0, np.float32)
    movement: list[float] = []
    if len(tiles) <= STEP_TILES:
        return _result(len(tiles), False, ranges, movement, tolerance)
    measure = _range_meter(graph, tiles.shape[1])
    for start in range(0, len(tiles), STEP_TILES):
        added = measure(tiles[start : start + STEP_TILES])
        grown = np.maximum(ranges, added) if start else added
        if start:
            movement.append(float(np.mean(1 - ranges / np.maximum(grown, np.finfo(np.float32).tiny))))
        ranges = grown
        quiet = [value < tolerance for value in movement[-PATIENCE:]]
        if len(quiet) == PATIENCE and all(quiet):
            return _result(min(start + STEP_TILES, len(tiles)), True, grown, movement, tolerance)
    return _result(len(tiles), False, ranges, movement, tolerance)


def _result(
    tiles: int, converged: bool, ranges: NDArray[np.float32], movement: list[float], tolerance: float
) -> Convergence:
    return Convergence(
        tiles=tiles,
        converged=converged,
        layers=len(ranges),
        movement=tuple(round(value, 5) for value in movement),
        tolerance=tolerance,
    )


def _range_meter(graph: Path, side: int) -> Any:
    """A function from `(N, H, W, 3)` tiles to the largest absolute value of every watched activation, `(L,)`."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(graph))
    watched = _watched(model)
    model.reshape({model.inputs[0]: [_BATCH, side, side, 3]})
    compiled = core.compile_model(_peaks_model(model, watched), "CPU", {"ENABLE_CPU_PINNING": False})

    def measure(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        filled = tiles[np.arange(-(-len(tiles) // _BATCH) * _BATCH) % len(tiles)]
        peaks = [compiled(filled[start : start + _BATCH])[0].copy() for start in range(0, len(filled), _BATCH)]
        result: NDArray[np.float32] = np.max(peaks, axis=0)
        return result

    return measure


def _watched(model: "ov.Model") -> list["ov.Output"]:
    """Inputs of products and convolutions that are computed from the tiles, each once."""
    found = {}
    for node in model.get_ops():
        if node.get_type_name() not in {"MatMul", "Convolution"}:
            continue
        for value in node.input_values():
            if value.get_partial_shape().is_dynamic:  # weights have no batch
                found[(value.get_node().get_friendly_name(), value.get_index())] = value
    return list(found.values())


def _peaks_model(model: "ov.Model", watched: list["ov.Output"]) -> "ov.Model":
    import openvino as ov
    from openvino import opset13 as op

    peaks = [op.reduce_max(op.abs(value), _axes(value), False) for value in watched]
    stacked = op.concat([op.unsqueeze(peak, 0) for peak in peaks], 0)
    return ov.Model([stacked], model.get_parameters(), "ranges")


def _axes(value: "ov.Output") -> NDArray[np.int64]:
    return np.arange(value.get_partial_shape().rank.get_length(), dtype=np.int64)
