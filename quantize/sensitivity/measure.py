"""Per-layer sensitivity: the embedding's error with one layer in INT8, and with all but one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import tile_cosines
from atlas_edge.quantize.sensitivity.toggles import ToggledEncoder

if TYPE_CHECKING:
    import torch

Tiles = NDArray[np.uint8]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        layer: Name, such as `blocks.3.mlp.fc2`; `blocks.3.attn.scores` and `.values` are the products of attention.
        alone: Mean 1 - cosine with only this layer in INT8.
        without: Mean 1 - cosine with every layer but this one in INT8; None where it was not measured.
        work: Its share of the encoder's multiply-adds, 0-1.
    """

    layer: str
    alone: float
    without: float | None
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """All layers in the order of computation.

    Attributes:
        layers: One entry each.
        everything: Mean 1 - cosine with all of them in INT8.
        tiles: Tiles that the errors are means over.
        recipe: Name of the recipe that rounds them.
    """

    layers: tuple[LayerSensitivity, ...]
    everything: float
    tiles: int
    recipe: str

    def gains(self) -> dict[str, float]:
        """What each layer costs: the error that leaving it out takes away, or its own error where that is unknown."""
        return {
            entry.layer: entry.alone if entry.without is None else self.everything - entry.without
            for entry in self.layers
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Sensitivity":
        """Back again."""
        layers = tuple(LayerSensitivity(**entry) for entry in data["layers"])
        return cls(layers=layers, everything=data["everything"], tiles=data["tiles"], recipe=data["recipe"])


def measure_sensitivity(
    encoder: ToggledEncoder, tiles: Tiles, *, recipe: str, without: bool = True, progress: Progress | None = None
) -> Sensitivity:
    """Measure every layer.

    What comes before a layer's block does not depend on its switch, so blocks are run once and only the rest of the
    encoder again for each layer: half the work of running all of it. An encoder without blocks runs as a whole.

    Args:
        encoder: With a switch at each layer.
        tiles: `(N, H, W, 3)` uint8, none of them a calibration tile.
        recipe: Its name, for the report.
        without: Measure all but one, too, for twice the time.
        progress: Called with the number of layers done.
    """
    encoder.switch(())
    reference = encoder.embed(tiles)
    encoder.switch(encoder.layers)
    everything = _error(reference, encoder.embed(tiles))
    alone: dict[str, float] = {}
    left_out: dict[str, float] = {}
    for layers, run_off, run_on in _stretches(encoder, tiles):
        for layer in layers:
            encoder.switch((layer,))
            alone[layer] = _error(reference, run_off())
            if without:
                encoder.switch(name for name in encoder.layers if name != layer)
                left_out[layer] = _error(reference, run_on())
            if progress is not None:
                progress(1)
    total = sum(encoder.work.values())
    found = tuple(
        LayerSensitivity(layer=layer, alone=alone[layer], without=left_out.get(layer), work=encoder.work[layer] / total)
        for layer in encoder.layers
    )
    return Sensitivity(layers=found, everything=everything, tiles=len(tiles), recipe=recipe)


def plot_sensitivity(sensitivity: Sensitivity, path: Path) -> None:
    """Write both errors of every layer as an SVG, on a logarithmic scale."""
    import io

    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    from atlas_edge.system.atomic import write_atomic

    layers = sensitivity.layers
    figure = Figure(figsize=(8, 1.2 + 0.16 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(layers))
    axes.plot([_positive(entry.alone) for entry in layers], rows, "o", ms=4, color="#0072b2", label="only this layer")
    if layers[0].without is not None:
        rest = [_positive(entry.without or 0.0) for entry in layers]
        axes.plot(rest, rows, "s", ms=3, color="#d55e00", label="all but this layer")
    axes.axvline(_positive(sensitivity.everything), color="#999999", lw=1, label="all layers")
    axes.set_xscale("log")
    axes.set_yticks(rows, [entry.layer for entry in layers], fontsize=6)
    axes.invert_yaxis()
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.grid(axis="x", lw=0.3)
    axes.set_xlabel(f"1 - cosine of the embedding, mean of {sensitivity.tiles} tiles")
    axes.set_title(f"INT8, recipe {sensitivity.recipe}", loc="left", fontsize=9)
    axes.legend(fontsize=7)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    write_atomic(path, buffer.getvalue())


def _stretches(
    encoder: ToggledEncoder, tiles: Tiles
) -> "Sequence[tuple[list[str], Callable[[], Any], Callable[[], Any]]] | Any":
    """Stretches of layers, each with a function that runs the encoder from there on.

    The first function starts from activations that no INT8 layer has touched, the second from activations after INT8
    layers only.
    """
    import torch

    backbone = getattr(encoder.module, "backbone", None)
    blocks = getattr(backbone, "blocks", None)
    if backbone is None or not isinstance(blocks, torch.nn.Sequential):
        yield list(encoder.layers), lambda: encoder.embed(tiles), lambda: encoder.embed(tiles)
        return
    inside = {name for name in encoder.layers if name.startswith("blocks.")}
    before = [name for name in encoder.layers if name not in inside]
    if before:
        yield before, lambda: encoder.embed(tiles), lambda: encoder.embed(tiles)
    every = list(blocks)
    starts = {on: _inputs(encoder, blocks, tiles, on=on) for on in (False, True)}
    try:
        for number, block in enumerate(every):
            own = [name for name in encoder.layers if name.startswith(f"blocks.{number}.")]

            def run(on: bool, number: int = number) -> NDArray[np.float32]:
                backbone.blocks = torch.nn.Sequential(_Constant(starts[on]), *every[number:])
                return encoder.embed(tiles)

            yield own, lambda run=run: run(False), lambda run=run: run(True)
            for on in (False, True):
                encoder.switch(encoder.layers if on else ())
                with torch.inference_mode():
                    starts[on] = block(starts[on])
    finally:
        backbone.blocks = blocks


def _error(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    # In float64: a single layer's error lies near the rounding of float32.
    return float(1.0 - tile_cosines(reference, found).mean())


def _inputs(encoder: ToggledEncoder, blocks: "torch.nn.Sequential", tiles: Tiles, *, on: bool) -> "torch.Tensor":
    """What goes into the first block."""
    caught: list[Any] = []
    handle = blocks[0].register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0].detach()))
    encoder.switch(encoder.layers if on else ())
    encoder.embed(tiles)
    handle.remove()
    found: torch.Tensor = caught[0]
    return found


def _Constant(value: "torch.Tensor") -> "torch.nn.Module":
    import torch

    class Constant(torch.nn.Module):
        def forward(self, _: "torch.Tensor") -> "torch.Tensor":
            return value

    return Constant()


def _positive(value: float) -> float:
    return max(value, 1e-9)
