"""The INT8 grids of a folded vision transformer, layer by layer, each chosen by the error of the layer's output."""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from atlas_edge.errors import UsageError
from atlas_edge.quantize.numerics.gptq import round_weights
from atlas_edge.quantize.numerics.rounding import (
    LARGEST,
    even_smooth_scale,
    fake_round,
    fake_weight,
    grid_ends,
    symmetric_ends,
)
from atlas_edge.quantize.recipe import Recipe

if TYPE_CHECKING:
    from atlas_edge.models.folding.attention import FoldedAttention
    from atlas_edge.models.folding.block import FoldedBlock
    from atlas_edge.models.folding.vit import FoldedVit

PATCH_EMBED = "patch_embed.proj"
# Shares of the range that calibration tiles fill which are tried where the recipe asks for the least error.
_CLIPS = (1.0, 0.9, 0.8)
_BATCH = 8
# Tokens of a tile that fit weights, its CLS token among them. Ranges themselves come from all tokens.
_SAMPLED_TOKENS = 32
# CLS tokens and others that choose strength and range: one to three, whatever the number of tiles.
_CHOOSING_CLS, _CHOOSING_OTHERS = 256, 768


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationGrid:
    """256 evenly spaced values, zero among them.

    Attributes:
        low: Smallest value.
        high: Largest value.
        scale: `(C,)` that the input is divided by, and the weight multiplied with, before; None without SmoothQuant.
        alpha: SmoothQuant strength of `scale`, or of the scale that went into the rows of the product before.
        clip: Share of the range that calibration tiles fill.
    """

    low: float
    high: float
    scale: NDArray[np.float32] | None = None
    alpha: float = -1.0
    clip: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGrid:
    """Symmetric INT8 per output channel: `values * step` and the bias that belongs to it.

    Attributes:
        values: `(O, C)` or `(O, C, H, W)` int8.
        step: `(O,)`.
        bias: `(O,)`, with the mean error of rounding taken out; for the patch embedding, what is added to positions.
        error: Squared error of the output on calibration tokens, relative to the output's variance.
    """

    values: NDArray[np.int8]
    step: NDArray[np.float32]
    bias: NDArray[np.float32]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VitGrids:
    """What `choose_grids` found.

    Attributes:
        activations: Per Linear name, and `blocks.N.attn.query` and `.key` for the first product of attention: both
            symmetric, because OpenVINO multiplies in INT8 there only without zero points (2026.4).
        weights: Per Linear or convolution name; layers without an entry stay in floating point.
    """

    activations: dict[str, ActivationGrid] = field(default_factory=dict)
    weights: dict[str, WeightGrid] = field(default_factory=dict)

    def coverage(self, folded: "FoldedVit") -> dict[str, str]:
        """`{"Linear": "72 of 72", "QueryKey": "12 of 12", ...}`."""
        linears = [name for name, layer in folded.named_modules() if isinstance(layer, torch.nn.Linear)]
        keys = sum(name.endswith(".key") for name in self.activations)
        return {
            "Convolution": f"{int(PATCH_EMBED in self.weights)} of 1",
            "Linear": f"{sum(name in self.weights for name in linears)} of {len(linears)}",
            "QueryKey": f"{keys} of {len(folded.blocks)}",
        }


def choose_grids(folded: "FoldedVit", calibration: Sequence[NDArray[np.uint8]], recipe: Recipe) -> VitGrids:
    """Choose every INT8 grid, in one full-precision pass over the calibration tiles.

    Before that, exact changes to `folded`, in place, that make its tensors fit a grid better, each where the network
    allows it (`FoldedAttention`, `FoldedBlock.inputs`):

    - a constant is taken from each key channel, so that its range is centred: it adds the same to all scores of a
      query, and softmax does not see it;
    - a constant is taken from each value channel; attention weights sum to one, so it passes through to the
      projection, whose bias gives it back;
    - query and key channels are scaled against each other until their ranges are equal, two by two where positions
      turn them;
    - SmoothQuant's division of what a gated MLP's second product reads goes into the rows of its value.

    Then, for each Linear, the SmoothQuant strength (arXiv:2211.10438, equation 4) and the share of the range are those
    with the least output error on sampled tokens; weights are rounded by GPTQ where the recipe fits them; and the mean
    error that is left goes into the bias.

    Args:
        folded: From `fold_vit`; changed in place, its function at full precision stays the same.
        calibration: Batches of tiles, `(B, H, W, 3)` uint8.
        recipe: What to quantize and how.

    Raises:
        UsageError: `recipe.exclude` names a layer that the network does not have, or the calibrator is neither `max`
            nor `mse`.
    """
    if recipe.calibrator in ("percentile", "entropy"):
        raise UsageError(
            f"no {recipe.calibrator} calibrator where a vision transformer is quantized layer by layer for OpenVINO",
            hint="take max or mse, or percentile with the quantizer nncf",
        )
    stack = np.concatenate(list(calibration))
    # Spread over all of them: a calibration set that is sorted by class or slide stays balanced.
    spread = np.linspace(0, len(stack) - 1, min(recipe.calibration_tiles, len(stack))).astype(int)
    tiles = torch.from_numpy(stack[spread])
    excluded = _excluded(folded, recipe)
    grids = VitGrids()
    with torch.inference_mode():
        if recipe.patch_embed and PATCH_EMBED not in excluded:
            grids.weights[PATCH_EMBED] = _patch_embedding(folded, tiles)
        tokens = torch.cat([folded.embed_patches(piece) for piece in tiles.split(_BATCH)])
        for index, block in enumerate(folded.blocks):
            tokens = _Block(f"blocks.{index}", block, grids, recipe, excluded).run(tokens)
    return grids


class _Extremes:
    """The range of each channel of a tensor, over all calibration tiles."""

    def __init__(self) -> None:
        self.low: Tensor = torch.tensor(torch.inf)
        self.high: Tensor = torch.tensor(-torch.inf)

    def add(self, tokens: Tensor) -> None:
        """Take in a batch `(B, N, C)`."""
        self.low = torch.minimum(self.low, tokens.amin((0, 1)))
        self.high = torch.maximum(self.high, tokens.amax((0, 1)))

    def shift(self, offset: Tensor) -> None:
        """Take a constant `(C,)` from every token."""
        self.low, self.high = self.low - offset, self.high - offset


class _Inputs(_Extremes):
    """What a Linear reads: the range of each channel, and sampled tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def add(self, tokens: Tensor) -> None:
        """Take in a batch `(B, N, C)`."""
        super().add(tokens)
        others = torch.randperm(tokens.shape[1] - 1, generator=self._generator)[: _SAMPLED_TOKENS - 1]
        self._rows.append(tokens[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + others])])

    @property
    def rows(self) -> Tensor:
        """`(n, C)`."""
        return torch.cat(self._rows).flatten(0, 1)

    @property
    def choosing(self) -> Tensor:
        """`(n, C)`: a fixed number of CLS tokens and of others; tiles are taken again where there are fewer."""
        tiles = torch.cat(self._rows)
        first, others = tiles[:, 0], tiles[:, 1:].flatten(0, 1)
        return torch.cat([_spread(first, _CHOOSING_CLS), _spread(others, _CHOOSING_OTHERS)])

    def shift(self, offset: Tensor) -> None:
        """Take a constant `(C,)` from every token."""
        super().shift(offset)
        self._rows = [rows - offset for rows in self._rows]

    def divide(self, scale: Tensor) -> None:
        """Divide every token by a positive scale `(C,)`."""
        self.low, self.high = self.low / scale, self.high / scale
        self._rows = [rows / scale for rows in self._rows]


class _Block:
    """Chooses the grids of one block."""

    def __init__(
        self, name: str, block: "FoldedBlock", grids: VitGrids, recipe: Recipe, excluded: frozenset[str]
    ) -> None:
        self.name, self.block, self.grids, self.recipe, self.excluded = name, block, grids, recipe, excluded
        self.inputs = {read.products[0]: _Inputs() for read in block.inputs}
        self.outputs = {leaf: _Extremes() for leaf in ("attn.query", "attn.key", "attn.v")}
        self.smoothed: dict[str, ActivationGrid] = {}

    def run(self, tokens: Tensor) -> Tensor:
        """Pass all tokens `(T, N, D)` through the block, then choose: what the next block reads."""
        with self._watched():
            after = torch.cat([self.block(piece) for piece in tokens.split(_BATCH)])
        self._centre(self.block.attn)
        self._balance(self.block.attn)
        for read in self.block.inputs:
            # The projection's scale stays a multiplication: the plugin joins it with the grid that follows.
            if read.linear_in is not None and read.linear_in != "attn.v":
                self._smooth(read.products[0], read.linear_in)
        for read in self.block.inputs:
            self._choose(read.products)
        return after

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Record what the products read, and the ranges of queries, keys and values."""

        def reads(seen: _Inputs) -> Any:
            return lambda _, given: seen.add(given[0])

        def makes(seen: _Extremes) -> Any:
            return lambda _, __, made: seen.add(made if made.dim() == 3 else made.transpose(1, 2).flatten(2))

        handles = [self.block.get_submodule(n).register_forward_pre_hook(reads(s)) for n, s in self.inputs.items()]
        handles += [self.block.get_submodule(n).register_forward_hook(makes(s)) for n, s in self.outputs.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _centre(self, attention: "FoldedAttention") -> None:
        key, value = self.outputs["attn.key"], self.outputs["attn.v"]
        if attention.shifts_keys:
            middle = (key.low + key.high) / 2
            key.shift(middle)
            attention.shift_keys(middle)
        if attention.shifts_values:
            middle = (value.low + value.high) / 2
            attention.shift_values(middle)
            self.inputs["attn.proj"].shift(middle)

    def _balance(self, attention: "FoldedAttention") -> None:
        query, key = (attention.together(_peak(self.outputs[leaf])) for leaf in ("attn.query", "attn.key"))
        ratio = (key / query).sqrt().clamp(1e-3, 1e3)
        attention.scale_queries(ratio)
        if self.recipe.attention and not self.excluded & {f"{self.name}.attn.q", f"{self.name}.attn.k"}:
            for leaf, peak in (("query", query * ratio), ("key", key / ratio)):
                low, high = symmetric_ends(float(peak.max()))
                self.grids.activations[f"{self.name}.attn.{leaf}"] = ActivationGrid(low=low, high=high)

    def _smooth(self, leaf: str, linear_in: str) -> None:
        """SmoothQuant, exactly and at no cost: the scale goes into the rows of the product that makes the input."""
        if f"{self.name}.{leaf}" in self.excluded:
            return
        inputs, layer, maker = self.inputs[leaf], self.block.get_submodule(leaf), self.block.get_submodule(linear_in)
        grid = _activation_grid(inputs, inputs.choosing, layer.weight, self.recipe)
        if grid.scale is not None:
            scale = torch.from_numpy(grid.scale)
            maker.weight.data /= scale[:, None]
            maker.bias.data /= scale
            layer.weight.data *= scale
            inputs.divide(scale)
        self.smoothed[leaf] = replace(grid, scale=None)

    def _choose(self, leaves: Sequence[str]) -> None:
        names = [name for name in (f"{self.name}.{leaf}" for leaf in leaves) if name not in self.excluded]
        if not names:
            return
        inputs, layers = self.inputs[leaves[0]], [self.block.get_submodule(n[len(self.name) + 1 :]) for n in names]
        rows = inputs.rows
        grid = self.smoothed.get(leaves[0]) or _activation_grid(
            inputs, inputs.choosing, torch.cat([layer.weight for layer in layers]), self.recipe
        )
        scale = torch.ones(rows.shape[1]) if grid.scale is None else torch.from_numpy(grid.scale)
        rounded = fake_round(rows / scale, grid.low, grid.high)
        for name, layer in zip(names, layers, strict=True):
            self.grids.activations[name] = grid
            self.grids.weights[name] = _weight_grid(layer, rows, rounded, scale, self.recipe)


def _spread(rows: Tensor, count: int) -> Tensor:
    """So many rows, evenly from all of them, some more than once where there are fewer; none of none."""
    return rows[torch.linspace(0, len(rows) - 1, count).long()] if len(rows) else rows


def _peak(inputs: _Extremes) -> Tensor:
    return torch.maximum(inputs.high, -inputs.low).clamp(min=1e-6)


def _activation_grid(inputs: _Inputs, rows: Tensor, weight: Tensor, recipe: Recipe) -> ActivationGrid:
    wanted = rows @ weight.T
    best: tuple[float, ActivationGrid] | None = None
    for alpha in recipe.smooth_alphas:
        scale = even_smooth_scale(_peak(inputs), weight, alpha)
        smoothed, rounded = rows / scale, fake_weight(weight * scale)
        low, high = float((inputs.low / scale).min()), float((inputs.high / scale).max())
        for clip in _CLIPS if recipe.calibrator == "mse" else (1.0,):
            ends = grid_ends(clip * low, clip * high)
            wrong = fake_round(smoothed, *ends) @ rounded.T - wanted
            error = float((wrong - wrong.mean(0)).square().mean())
            if best is None or error < best[0]:
                kept = None if alpha < 0 else scale.numpy()
                best = error, ActivationGrid(low=ends[0], high=ends[1], scale=kept, alpha=alpha, clip=clip)
    assert best is not None
    return best[1]


def _weight_grid(layer: Any, rows: Tensor, rounded: Tensor, scale: Tensor, recipe: Recipe) -> WeightGrid:
    weight = layer.weight * scale
    if recipe.weights == "fitted":
        centred = rounded - rounded.mean(0)
        found = round_weights(weight, centred.T @ centred / len(centred))
        weight, largest = found.weight, found.largest
    else:
        weight, largest = fake_weight(weight), weight.abs().amax(1).clamp(min=1e-8)
    step = largest / LARGEST
    wanted = rows @ layer.weight.T
    wrong = rounded @ weight.T - wanted
    bias = layer.bias - wrong.mean(0) if recipe.bias_correction else layer.bias
    return WeightGrid(
        values=(weight / step[:, None]).round().to(torch.int8).numpy(),
        step=step.numpy(),
        bias=bias.numpy().copy(),
        error=float((wrong - wrong.mean(0)).square().mean() / wanted.var().clamp(min=1e-12)),
    )


def _patch_embedding(folded: "FoldedVit", tiles: Tensor) -> WeightGrid:
    convolution = folded.patch_embed.proj
    flat = convolution.weight.flatten(1)
    rounded, step = fake_weight(flat), flat.abs().amax(1).clamp(min=1e-12) / LARGEST
    sample = tiles[:: max(1, len(tiles) // 32)].float().permute(0, 3, 1, 2)
    wanted = convolution(sample).flatten(2)
    wrong = (
        functional.conv2d(sample, rounded.view_as(convolution.weight), stride=convolution.stride).flatten(2) - wanted
    )
    mean = wrong.mean((0, 2))
    return WeightGrid(
        values=(rounded / step[:, None]).round().to(torch.int8).view_as(convolution.weight).numpy(),
        step=step.numpy(),
        bias=-mean.numpy(),
        error=float((wrong - mean[:, None]).square().mean() / wanted.var().clamp(min=1e-12)),
    )


def _excluded(folded: "FoldedVit", recipe: Recipe) -> frozenset[str]:
    """Names of the layers that stay in floating point; timm's `attn.qkv` stands for all three."""
    names = [n for n, layer in folded.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    found: set[str] = set()
    for pattern in recipe.exclude:
        matched = {name for name in names if any(fnmatch.fnmatch(alias, pattern) for alias in _aliases(name))}
        if not matched:
            raise UsageError(f"recipe excludes {pattern!r}, which no layer matches", hint=f"layers: {names[1]} …")
        found |= matched
    return frozenset(found)


def _aliases(name: str) -> Iterator[str]:
    yield name
    stem, _, leaf = name.rpartition(".")
    if leaf in ("q", "k", "v"):
        yield f"{stem}.qkv"
        yield f"{stem}.{leaf}_proj"
    if leaf in ("fc1_g", "fc1_x"):
        yield f"{stem}.fc1"
