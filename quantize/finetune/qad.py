"""Quantization-aware distillation: the full-precision encoder teaches its quantized self on unlabelled tiles.

For what post-training quantization cannot hold. Rounding stays in the forward pass and is passed over in the backward
pass (straight-through, as ModelOpt's quantizers do); the ranges of inputs are trained, too (`learned_ranges`).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.quantize.finetune.held_out import part_tiles
from atlas_edge.quantize.finetune.learned_ranges import PARAMETER, keep_ranges, learn_ranges
from atlas_edge.quantize.onnx.fakequant import cosine_error, embed, fake_quantize
from atlas_edge.quantize.onnx.qdq import check_merging, merging
from atlas_edge.quantize.recipe import Recipe, merging_nothing
from atlas_edge.system.atomic import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT = "qad.safetensors"
_PIECE = 8
# Biases that begin at zero learn as if they were this large.
_SIZE_OF_ZEROS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class QadOptions:
    """How long and how fast.

    Attributes:
        steps: Optimiser steps.
        batch: Tiles a step.
        weight_lr: Largest change of a Linear's or convolution's weights in a step, as a share of the root mean square
            of the output channel that they belong to. A rate for all would tear up the channels that LayerScale made
            small long before it moved the others by a step of their grid.
        other_lr: The same for everything else (norms, biases, embeddings), as a share of the value itself.
        range_lr: The same for the ranges of inputs; 0 leaves them as they were set.
        warmup: Steps over which rates rise; after them they fall by a cosine to a tenth.
        cosine: Weight of 1 - cosine; smooth-L1 has the rest (GPFM and Theia: 0.9).
        held_out: Tiles kept from training to judge by.
        save_every: Steps between checkpoints.
        seed: Seed of the order of the tiles.
    """

    steps: int = 120
    batch: int = 8
    weight_lr: float = 1e-5
    other_lr: float = 1e-5
    range_lr: float = 0.02
    warmup: int = 10
    cosine: float = 0.9
    held_out: int = 32
    save_every: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QadResult:
    """What training did.

    Attributes:
        module: Fake-quantized encoder, the better of before and after on the held-out tiles.
        error_before: Mean 1 - cosine of held-out embeddings before training.
        error_after: The same after it.
        losses: Training loss of every step since the run was started or resumed.
        resumed_at: Step at which this process took over.
        tiles_trained: How many tiles trained; the others judge, or are of the slides that do.
        held_out_by: Whether whole slides were held out, or tiles one by one.
    """

    module: "nn.Module"
    error_before: float
    error_after: float
    losses: tuple[float, ...]
    resumed_at: int
    tiles_trained: int
    held_out_by: Literal["slide", "tile"]


def distill_quantized(
    module: "nn.Module",
    tiles: NDArray[np.uint8],
    *,
    recipe: Recipe,
    options: QadOptions | None = None,
    slides: Sequence[str] | None = None,
    folder: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> QadResult:
    """Quantize an encoder and train it to compute what it computed before.

    Args:
        module: Full-precision `EncoderModule` around a ViT. Unchanged.
        tiles: `(N, H, W, 3)` uint8, no labels; they calibrate, too.
        recipe: How it is quantized to begin with.
        options: See `QadOptions`.
        slides: Slide of each tile, at least two of them: those that judge are of slides that none is trained on. Tiles
            are held out one by one where it is None, or where so fewer than half of them would train.
        folder: Where the state is kept; a run that was killed goes on from it, to the same result. None keeps none.
        progress: Called with the step and its loss.

    Raises:
        UsageError: Too few tiles or steps, an impossible learning rate, tokens that cannot be merged as the recipe
            asks, or `folder` holds a run with other options.
        InputError: The state in `folder` cannot be read, or the network has no tokens to compare.
    """
    import torch

    options = options or QadOptions()
    check_options(options)
    check_merging(module, recipe)
    parting = part_tiles(len(tiles), slides, held_out=options.held_out, batch=options.batch, seed=options.seed)
    train, held = tiles[parting.trained], tiles[parting.held]
    judge = [held[at : at + _PIECE] for at in range(0, len(held), _PIECE)]
    _check_tokens(module, train[:1])
    reference = embed(module, judge)
    pieces = [train[at : at + _PIECE] for at in range(0, len(train), _PIECE)]
    student = fake_quantize(module, pieces, merging_nothing(recipe), multiply=False, trainable=True)
    if options.range_lr:
        learn_ranges(student)
    deployed = merging(module, student, recipe)
    error_before = cosine_error(reference, embed(deployed, judge))
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    state = _State(student, options, _identity(module, recipe, options, train), folder)
    resumed_at, losses = state.step, []
    teacher = _Teacher(module, train, merges=recipe.merge_tokens != 1)
    while state.step < options.steps:
        chosen = _order(len(train), options, state.step)
        losses.append(_train_step(deployed, state, train[chosen], teacher.tokens(chosen), options))
        if progress is not None:
            progress(state.step, losses[-1])
        if state.step % options.save_every == 0 or state.step == options.steps:
            state.save()
    error_after = cosine_error(reference, embed(deployed, judge))
    if not error_after < error_before:
        with torch.no_grad():
            for name, value in student.named_parameters():
                value.copy_(before[name])
    keep_ranges(student)
    return QadResult(
        module=student.eval(),
        error_before=error_before,
        error_after=error_after,
        losses=tuple(losses),
        resumed_at=resumed_at,
        tiles_trained=len(train),
        held_out_by=parting.by,
    )


def check_options(options: QadOptions) -> None:
    """Refuse steps and rates that train nothing.

    Raises:
        UsageError: One that is out of range.
    """
    if options.steps < 1:
        raise UsageError(
            f"--steps {options.steps} trains nothing, expected 1 or more", hint="leave --steps out for 120"
        )
    if not 0 < options.weight_lr < 1:
        raise UsageError(
            f"a learning rate of {options.weight_lr:g}, expected more than 0 and less than 1",
            hint=f"leave --lr out for {QadOptions().weight_lr:g}",
        )
    if not 0 <= options.range_lr < 1:
        raise UsageError(
            f"a learning rate of {options.range_lr:g} for ranges, expected 0 or more and less than 1",
            hint=f"leave --range-lr out for {QadOptions().range_lr:g}",
        )


def token_loss(student: "Tensor", teacher: "Tensor", prefix: int, cosine: float) -> "Tensor":
    """Loss of `(B, T, D)` tokens: the CLS token's and the mean patch token's, one to one.

    Each is `cosine * (1 - cos) + (1 - cosine) * smooth-L1` of tokens divided by the teacher's standard deviation.
    """
    from torch.nn import functional

    scale = teacher.std().clamp(min=1e-6)
    cosines = 1 - functional.cosine_similarity(student, teacher, dim=-1)
    distances = functional.smooth_l1_loss(student / scale, teacher / scale, reduction="none").mean(-1)
    both = cosine * cosines + (1 - cosine) * distances
    return both[:, 0].mean() + both[:, prefix:].mean()


def _check_tokens(module: Any, tile: NDArray[np.uint8]) -> None:
    import torch

    with torch.inference_mode():
        found = module.tokens(module.normalise(torch.from_numpy(tile)))
    if found.dim() != 3:
        kind = type(module.backbone).__name__
        raise InputError(
            f"{kind} computes features of shape {tuple(found.shape)}, training compares tokens `(B, T, D)`",
            hint="quantize it without training: atlas-export --precision int8",
        )


def _train_step(
    student: Any, state: "_State", tiles: NDArray[np.uint8], wanted: "Tensor", options: QadOptions
) -> float:
    import torch

    state.set_rates()
    pixels = torch.from_numpy(tiles)
    if hasattr(student, "summaries"):
        loss = token_loss(student.summaries(pixels), wanted, 1, options.cosine)
    else:
        found = student.tokens(student.normalise(pixels))
        loss = token_loss(found, wanted, student.prefix_tokens, options.cosine)
    state.optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    state.advance()
    return float(loss.detach())


def _order(count: int, options: QadOptions, step: int) -> NDArray[np.int64]:
    """Tiles of a step: each pass over the tiles in an order of its own, a function of seed and step alone."""
    per_pass = count // options.batch
    number, within = divmod(step, per_pass)
    order = np.random.default_rng((options.seed, number)).permutation(count)
    return order[within * options.batch : (within + 1) * options.batch]


def _identity(module: "nn.Module", recipe: Recipe, options: QadOptions, tiles: NDArray[np.uint8]) -> str:
    """What must be the same when a run goes on."""
    fixed = {name: value for name, value in asdict(options).items() if name != "save_every"}
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().contiguous().numpy().tobytes())
    return json.dumps(
        {
            "model": weights.hexdigest(),
            "recipe": recipe.model_dump(mode="json"),
            "options": fixed,
            "tiles": hashlib.sha256(tiles.tobytes()).hexdigest(),
        },
        sort_keys=True,
    )


class _Teacher:
    """The full-precision encoder's tokens, or their summaries for one that merges, once a tile and kept in FP16."""

    def __init__(self, module: Any, tiles: NDArray[np.uint8], *, merges: bool) -> None:
        self._module, self._tiles, self._merges = module, tiles, merges
        self._known: dict[int, Tensor] = {}

    def tokens(self, chosen: NDArray[np.int64]) -> "Tensor":
        """`(B, T, D)` of the tiles at `chosen`; `(B, 2, D)` of summaries."""
        import torch

        from atlas_edge.models.merged_vit import summaries_of

        new = [int(index) for index in chosen if int(index) not in self._known]
        if new:
            with torch.no_grad():
                found = self._module.tokens(self._module.normalise(torch.from_numpy(self._tiles[new])))
                if self._merges:
                    found = summaries_of(found, self._module.prefix_tokens)
            self._known |= {index: tokens.half() for index, tokens in zip(new, found, strict=True)}
        return torch.stack([self._known[int(index)] for index in chosen]).float()


class _State:
    """Parameters, optimiser and step, kept in one file."""

    def __init__(self, student: "nn.Module", options: QadOptions, identity: str, folder: Path | None) -> None:
        import torch

        self.student, self.options, self.identity, self.folder, self.step = student, options, identity, folder, 0
        ranges = [p for name, p in student.named_parameters() if name.endswith(PARAMETER)]
        rest = [p for name, p in student.named_parameters() if not name.endswith(PARAMETER)]
        weights = [p for p in rest if p.dim() in (2, 4)]
        others = [p for p in rest if p.dim() not in (2, 4)]
        self._groups = [(weights, options.weight_lr), (others, options.other_lr), (ranges, options.range_lr)]
        self.optimiser = torch.optim.AdamW(
            [{"params": params, "lr": rate} for params, rate in self._groups if params], weight_decay=0.0
        )
        # A logarithm's step is a share of the range already.
        self._sizes = [(p, _size(p.detach())) for p in (*weights, *others)]
        if folder is not None and (folder / CHECKPOINT).is_file():
            self._load(folder / CHECKPOINT)

    def set_rates(self) -> None:
        """Linear warm-up, then a cosine to a tenth."""
        options, step = self.options, self.step
        rest = max(options.steps - options.warmup, 1)
        fall = 0.55 + 0.45 * float(np.cos(np.pi * (step - options.warmup) / rest))
        factor = (step + 1) / options.warmup if step < options.warmup else fall
        rates = [rate for params, rate in self._groups if params]
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    def advance(self) -> None:
        """A step of the optimiser, scaled to the size of what it changes."""
        import torch

        before = [parameter.detach().clone() for parameter, _ in self._sizes]
        self.optimiser.step()
        with torch.no_grad():
            for (parameter, size), old in zip(self._sizes, before, strict=True):
                parameter.copy_(old.lerp(parameter, size))
        self.step += 1

    def save(self) -> None:
        """Write the state beside its final place and rename it."""
        from safetensors.torch import save

        if self.folder is None:
            return
        tensors = {f"model.{name}": value for name, value in self.student.named_parameters()}
        for number, entry in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in entry.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        contiguous = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        metadata = {"step": str(self.step), "identity": self.identity}
        write_atomic(self.folder / CHECKPOINT, save(contiguous, metadata))

    def _load(self, path: Path) -> None:
        import torch
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            step, identity = int(metadata["step"]), metadata["identity"]
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise InputError(f"{path} cannot be read: {error}", hint="remove it to start the run anew") from error
        if identity != self.identity:
            raise UsageError(
                f"{path} is of a run with another model, other tiles, recipe or options",
                hint="give the same ones to go on, or remove it to start anew",
            )
        with torch.no_grad():
            for name, value in self.student.named_parameters():
                value.copy_(tensors[f"model.{name}"])
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimiser":
                number, _, entry = rest.partition(".")
                entries.setdefault(int(number), {})[entry] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": entries, "param_groups": groups})
        self.step = step


def _size(values: "Tensor") -> "Tensor":
    """What a step is a share of: the root mean square of each output channel, or a value's own size."""
    if values.dim() in (2, 4):
        return values.square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (values.dim() - 1))
    typical = float(values.square().mean().sqrt())
    return values.abs().clamp(min=typical / 10 if typical else _SIZE_OF_ZEROS)
