"""Fake quantization of a torch encoder through ModelOpt: insert quantizers, set their ranges, smooth outliers."""

import fnmatch
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.quantize.recipe import Recipe

if TYPE_CHECKING:
    import torch

Tiles = NDArray[np.uint8]


def fake_quantize(module: "torch.nn.Module", calibration: Sequence[Tiles], recipe: Recipe) -> "torch.nn.Module":
    """A copy of an encoder whose Linear layers round weights (per channel) and inputs (per tensor) to INT8.

    The SmoothQuant strength is chosen among `recipe.smooth_alphas` by embedding error on tiles held out of the
    statistics; activation statistics are collected once and shared by all candidates.

    Args:
        module: Full-precision encoder, `(B, H, W, 3)` uint8 -> `(B, D)` float32. Unchanged.
        calibration: Batches of tiles.
        recipe: What to quantize and how.

    Returns:
        The fake-quantized copy; its attribute `smooth_alpha` holds the strength that was chosen.

    Raises:
        InputError: No calibration tiles.
        UsageError: `recipe.exclude` names a layer that the encoder does not have.
    """
    import torch

    held_out, statistics_tiles = split_choice(calibration, recipe)
    peaks = channel_peaks(module, statistics_tiles)
    reference = embed(module, held_out) if len(recipe.smooth_alphas) > 1 else None
    best: tuple[float, float, torch.nn.Module] | None = None
    for alpha in recipe.smooth_alphas:
        candidate = insert_quantizers(module, recipe)
        set_ranges(candidate, peaks, alpha)
        error = 0.0 if reference is None else cosine_error(reference, embed(candidate, held_out))
        if best is None or error < best[0]:
            best = (error, alpha, candidate)
    assert best is not None
    best[2].smooth_alpha = best[1]
    return best[2]


def split_choice(calibration: Sequence[Tiles], recipe: Recipe) -> tuple[list[Tiles], list[Tiles]]:
    """Hold `recipe.choice_tiles` tiles out of the calibration tiles (at most a quarter of them).

    Returns:
        Batches to choose on, and batches for the statistics. The two are the same where there is one tile only or
        nothing to choose.

    Raises:
        InputError: No calibration tiles.
    """
    if not any(len(batch) for batch in calibration):
        raise InputError("no calibration tiles, expected at least one", hint="give --calibration TILES")
    tiles = np.concatenate(list(calibration))[: recipe.calibration_tiles]
    size = max(len(batch) for batch in calibration)
    held = 0 if len(recipe.smooth_alphas) == 1 else min(recipe.choice_tiles, len(tiles) // 4)
    if held == 0:
        return list(_batched(tiles, size)), list(_batched(tiles, size))
    # Every k-th tile: a calibration set that is sorted by class or slide stays balanced on both sides.
    chosen = np.zeros(len(tiles), dtype=bool)
    chosen[np.linspace(0, len(tiles) - 1, held).astype(int)] = True
    return list(_batched(tiles[chosen], size)), list(_batched(tiles[~chosen], size))


def channel_peaks(module: "torch.nn.Module", calibration: Sequence[Tiles]) -> dict[str, "torch.Tensor"]:
    """Largest absolute input of every Linear, per channel `(C,)`, and of every convolution, as one scalar."""
    import torch

    peaks: dict[str, torch.Tensor] = {}

    def hook(name: str, linear: bool) -> Any:
        def record(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            peak = inputs[0].detach().abs()
            peak = peak.flatten(0, -2).amax(0) if linear else peak.amax()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return record

    handles = [
        layer.register_forward_pre_hook(hook(name, isinstance(layer, torch.nn.Linear)))
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    try:
        embed(module, calibration)
    finally:
        for handle in handles:
            handle.remove()
    return peaks


def insert_quantizers(module: "torch.nn.Module", recipe: Recipe) -> "torch.nn.Module":
    """A copy with ModelOpt quantizers on every Linear (and the patch convolution), ranges not set yet.

    Raises:
        UsageError: A pattern of `recipe.exclude` matches no layer.
    """
    import copy

    import torch

    names = [n for n, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    short = {name: name.removeprefix("backbone.") for name in names}
    for pattern in recipe.exclude:
        if not fnmatch.filter(short.values(), pattern):
            raise UsageError(f"recipe excludes {pattern!r}, which no layer matches", hint=f"layers: {names[1]} …")
    off = [n for n in names if any(fnmatch.fnmatch(short[n], pattern) for pattern in recipe.exclude)]
    if not recipe.patch_embed:
        off += [n for n in names if isinstance(module.get_submodule(n), torch.nn.Conv2d)]
    quantizer = {"num_bits": 8, "axis": None}
    config: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": quantizer | {"axis": 0}, "enable": True},
        {"quantizer_name": "*input_quantizer", "cfg": quantizer, "enable": True},
        *({"quantizer_name": f"{name}.*", "enable": False} for name in off),
    ]
    with quiet_modelopt():
        import modelopt.torch.quantization as mtq

        return mtq.quantize(copy.deepcopy(module).eval(), {"quant_cfg": config, "algorithm": None}, None)


def set_ranges(module: "torch.nn.Module", peaks: dict[str, "torch.Tensor"], alpha: float) -> None:
    """Set every quantizer's range from channel peaks, after moving outliers from inputs to weights by SmoothQuant.

    `s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)`; the input is divided by s, the weight multiplied (arXiv:2211.10438,
    equation 4). Negative `alpha` leaves both as they are.
    """
    import torch

    for name, layer in module.named_modules():
        if not (hasattr(layer, "input_quantizer") and hasattr(layer, "weight_quantizer")):
            continue
        if not layer.input_quantizer.is_enabled:
            continue
        peak = peaks[name].clamp(min=1e-5)
        weight = layer.weight.detach()
        if alpha >= 0 and isinstance(layer, torch.nn.Linear):
            scale = (peak**alpha / weight.abs().amax(0).clamp(min=1e-5) ** (1 - alpha)).clamp(1e-4, 1e4)
            layer.input_quantizer.pre_quant_scale = 1 / scale
            layer.weight.data = weight = weight * scale
            peak = peak / scale
        layer.input_quantizer.amax = peak.amax()
        layer.weight_quantizer.amax = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1))


def embed(module: "torch.nn.Module", batches: Sequence[Tiles]) -> NDArray[np.float32]:
    """Embeddings of all batches, `(N, D)`."""
    import torch

    with torch.inference_mode():
        return np.concatenate([module(torch.from_numpy(batch)).float().numpy() for batch in batches])


def cosine_error(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Mean of `1 - cosine` over tiles."""
    dot = (reference * candidate).sum(1)
    cosine = dot / np.maximum(np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1), 1e-12)
    return float(np.mean(1 - cosine))


@contextmanager
def quiet_modelopt() -> Iterator[None]:
    """Import and call ModelOpt without its start-up warnings about optional parts, and with nothing on stdout."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _batched(tiles: Tiles, size: int) -> Iterator[Tiles]:
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]
