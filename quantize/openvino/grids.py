"""The INT8 grids of a folded vision transformer, layer by layer, each chosen by the error of the layer's output."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from atlas_edge.errors import UsageError
from atlas_edge.models.folding.linear import standardise
from atlas_edge.models.folding.merging import Stream
from atlas_edge.quantize.numerics.blocks import FitOptions, Fitted, fit_stages
from atlas_edge.quantize.numerics.gptq import nearest_weights
from atlas_edge.quantize.numerics.moments import Channels
from atlas_edge.quantize.numerics.ranges import ActivationGrid
from atlas_edge.quantize.numerics.rounding import LARGEST, largest_integer, symmetric_ends
from atlas_edge.quantize.numerics.stages import Read, Stage, divide
from atlas_edge.quantize.recipe import Recipe

if TYPE_CHECKING:
    from atlas_edge.models.folding.attention import FoldedAttention
    from atlas_edge.models.folding.vit import FoldedVit

PATCH_EMBED = "patch_embed.proj"
_BATCH = 8


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
    """Choose every INT8 grid, block by block (`blocks.fit_stages`).

    Before that, exact changes to `folded`, in place, that make its tensors fit a grid better, each where the network
    allows it (`FoldedAttention`, `FoldedBlock.inputs`):

    - a constant is taken from each key channel, so that its range is centred: it adds the same to all scores of a
      query, and softmax does not see it;
    - a constant is taken from each value channel; attention weights sum to one, so it passes through to the
      projection, whose bias gives it back;
    - query and key channels are scaled against each other until their ranges are equal, two by two where positions
      turn them;
    - SmoothQuant's division of what a gated MLP's second product reads goes into the rows of its value.

    Where the last block computes for the CLS token alone, the products that read only that stay in floating point.

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
    excluded = _excluded(folded, recipe) | _cls_products(folded)
    grids = VitGrids()
    options = FitOptions(
        alphas=recipe.smooth_alphas,
        calibrator=recipe.calibrator,
        symmetric=False,
        weights=recipe.weights,
        levels=largest_integer(recipe.weight_bits),
        float_layers=excluded,
        bias_correction=recipe.bias_correction,
    )
    with torch.inference_mode():
        # With 7 bits, a hundredth of the work would cost more than all other layers: every token begins with it.
        if recipe.patch_embed and not recipe.portable and PATCH_EMBED not in excluded:
            grids.weights[PATCH_EMBED] = _patch_embedding(folded, tiles)
        tokens = torch.cat([folded.embed_patches(piece) for piece in tiles.split(_BATCH)])
        for _, found in fit_stages(_stages(folded, grids, recipe, excluded), Stream(tokens), options):
            grids.activations.update((name, layer.grid) for name, layer in found.items())
            grids.weights.update((name, _weight_grid(layer, options.levels)) for name, layer in found.items())
    return grids


def _stages(folded: "FoldedVit", grids: VitGrids, recipe: Recipe, excluded: frozenset[str]) -> Iterator[Stage]:
    for index, block in enumerate(folded.blocks):
        name, reads = f"blocks.{index}", []
        for read in block.inputs:
            # The projection's scale stays a multiplication: the plugin joins it with the grid that follows.
            maker = None if read.linear_in in (None, "attn.v") else partial(divide, block.get_submodule(read.linear_in))
            reads.append(Read({f"{name}.{leaf}": block.get_submodule(leaf) for leaf in read.products}, maker))
        *attending, projecting, hidden, mixing = reads
        quantized = recipe.attention and not excluded & {f"{name}.attn.q", f"{name}.attn.k"}
        yield Stage(
            norm=partial(standardise, eps=block.eps1),
            body=block.attended,
            first=tuple(attending),
            second=projecting,
            kept=block.kept,
            merge=block.after_attention,
            scores=_Scores(
                f"{name}.attn", block.attn, grids if quantized else None, largest_integer(recipe.weight_bits)
            ),
        )
        yield Stage(
            norm=partial(standardise, eps=block.eps2), body=_of_tokens(block.mlp), first=(hidden,), second=mixing
        )


def _of_tokens(mlp: Any) -> Callable[[Tensor, Stream], Tensor]:
    return lambda normed, _: mlp(normed)


class _Scores:
    """Centres and balances query, key and value of an attention; `grids` takes those of query and key, if any does.

    Keys stand where weights do in other products, and have as many bits.
    """

    def __init__(self, name: str, attention: "FoldedAttention", grids: VitGrids | None, levels: int) -> None:
        self.name, self.attention, self.grids, self.levels = name, attention, grids, levels
        self.makes = attention.query, attention.key, attention.v

    def adapt(self, *made: Channels) -> Tensor | None:
        attention, (query, key, value) = self.attention, made
        taken = None
        if attention.shifts_keys:
            middle = (key.low + key.high) / 2
            key.shift(middle)
            attention.shift_keys(middle)
        if attention.shifts_values:
            taken = (value.low + value.high) / 2
            attention.shift_values(taken)
        peaks = [attention.together(channels.peak) for channels in (query, key)]
        ratio = (peaks[1] / peaks[0]).sqrt().clamp(1e-3, 1e3)
        attention.scale_queries(ratio)
        if self.grids is not None:
            for leaf, peak, levels in (("query", peaks[0] * ratio, LARGEST), ("key", peaks[1] / ratio, self.levels)):
                largest = float(peak.max())
                low, high = symmetric_ends(largest * LARGEST / levels)
                limit = None if levels == LARGEST else largest
                self.grids.activations[f"{self.name}.{leaf}"] = ActivationGrid(low=low, high=high, limit=limit)
        return taken


def _weight_grid(layer: Fitted, levels: int) -> WeightGrid:
    step = layer.weights.largest / levels
    values = (layer.weights.weight / step[:, None]).round().to(torch.int8)
    assert layer.bias is not None
    return WeightGrid(values=values.numpy(), step=step.numpy(), bias=layer.bias.numpy().copy(), error=layer.grid.error)


def _patch_embedding(folded: "FoldedVit", tiles: Tensor) -> WeightGrid:
    convolution = folded.patch_embed.proj
    found = nearest_weights(convolution.weight.flatten(1))
    rounded, step = found.weight, found.largest / LARGEST
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


def _cls_products(folded: "FoldedVit") -> frozenset[str]:
    """Products that read one token of a tile: next to no work, and what they lose is lost for the embedding."""
    return frozenset(
        f"blocks.{index}.{leaf}"
        for index, block in enumerate(folded.blocks)
        if block.cls_only
        for read in block.inputs
        if "attn.k" not in read.products
        for leaf in read.products
    )


def _aliases(name: str) -> Iterator[str]:
    yield name
    stem, _, leaf = name.rpartition(".")
    if leaf in ("q", "k", "v"):
        yield f"{stem}.qkv"
        yield f"{stem}.{leaf}_proj"
    if leaf in ("fc1_g", "fc1_x"):
        yield f"{stem}.fc1"
