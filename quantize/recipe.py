"""The quantization recipe: every choice between a full-precision encoder and its INT8 form."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_edge.errors import InputError, UsageError
from atlas_edge.system.atomic import write_atomic

Calibrator = Literal["max", "percentile", "mse", "entropy"]
Weights = Literal["nearest", "fitted"]
Quantizer = Literal["layers", "nncf"]

PORTABLE_BITS = 7


class Recipe(BaseModel):
    """How an encoder is quantized to INT8.

    Attributes:
        name: What reports call it.
        smooth_alphas: SmoothQuant migration strengths to choose from, by embedding error on held-out calibration
            tiles, or layer by layer for vision transformers; one value is taken as it is. -1 turns SmoothQuant off, 0
            moves nothing to the weights, 1 moves the whole activation range (Xiao 2022, arXiv:2211.10438).
        calibrator: How the range of an activation is set: its largest value, the 99.99th percentile, the range with
            the least squared error (of the layer's output where weights are fitted, of the input otherwise), or that
            with the least Kullback-Leibler divergence (`ranges.clipped_amax`; ONNX and TensorRT).
        weights: How weights come onto their grid: rounded to the nearest, or `fitted` by GPTQ (`gptq.round_weights`;
            vision transformers, `blocks.fit_stages`).
        quantizer: What quantizes a vision transformer for OpenVINO: layer by layer (`grids.choose_grids`), or NNCF.
            Other networks always go through NNCF.
        weight_bits: Bits of a weight; below 8 its integers are stored in INT8. 7 makes a file that every processor
            computes alike, see `portable`.
        calibration_tiles: Most tiles that set the ranges, augmented ones among them.
        augmented_share: Share of them that are copies with bare glass or brown stain (`augmentation.with_augmented`).
        choice_tiles: Tiles held out of the calibration tiles to choose between recipes; also the number that set the
            ranges while choosing, so that a choice stays cheap.
        attention: Quantize the two matrix products inside attention.
        patch_embed: Quantize the patch embedding (or the first convolution of a CNN).
        bias_correction: Correct the mean shift that rounded weights cause.
        merge_tokens: How many times less the blocks have to compute because tokens that are alike become one
            (`merging.merge`; plain vision transformers, and for OpenVINO layer by layer); 1 merges none.
        exclude: Layers left in floating point, by module name such as `blocks.3.mlp.fc2`; `*` matches any run of
            characters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="custom", min_length=1)
    smooth_alphas: tuple[float, ...] = Field(default=(0.75,), min_length=1)
    calibrator: Calibrator = "max"
    weights: Weights = "nearest"
    quantizer: Quantizer = "layers"
    weight_bits: int = Field(default=8, ge=2, le=8)
    calibration_tiles: int = Field(default=300, ge=1)
    augmented_share: float = Field(default=0.25, ge=0, lt=1)
    choice_tiles: int = Field(default=48, ge=1)
    attention: bool = False
    patch_embed: bool = True
    bias_correction: bool = True
    merge_tokens: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    exclude: tuple[str, ...] = ()

    @property
    def portable(self) -> bool:
        """Whether 8-bit sums are exact on any processor, in any runtime.

        Processors without VNNI or AMX add two products of an unsigned and a signed byte in 16 bits, with saturation
        (`vpmaddubsw`): 2 * 255 * 64 = 32,640 still fits.
        """
        return self.weight_bits <= PORTABLE_BITS


def for_portable(recipe: Recipe) -> Recipe:
    """A recipe with weights of 7 bits, or fewer where it has fewer."""
    if recipe.portable:
        return recipe
    return recipe.model_copy(update={"name": f"{recipe.name}-portable", "weight_bits": PORTABLE_BITS})


def for_merging(recipe: Recipe, factor: float) -> Recipe:
    """A recipe whose network has `factor` times less to compute; see `Recipe.merge_tokens`."""
    if factor == recipe.merge_tokens:
        return recipe
    return recipe.model_copy(update={"name": f"{recipe.name}-merged{factor:g}", "merge_tokens": factor})


def merging_nothing(recipe: Recipe) -> Recipe:
    """The recipe of the same network with all its tokens."""
    return recipe.model_copy(update={"merge_tokens": 1.0})


def check_merges_nothing(recipe: Recipe, what: str, *, reason: str = "") -> None:
    """For `what` cannot merge tokens, and stands there for a reason.

    Raises:
        UsageError: The recipe asks for it.
    """
    if recipe.merge_tokens != 1:
        raise UsageError(
            f"recipe {recipe.name} merges tokens, which {what} cannot{reason and f': {reason}'}",
            hint="merge_tokens 1 merges none; INT8 of a plain vision transformer can",
        )


def openvino_recipe() -> Recipe:
    """OpenVINO's INT8 recipe for vision transformers that can be folded, tried on one model only."""
    # Stronger smoothing, and clipping, win on tissue like the calibration tiles and lose on other tissue, which leaves
    # ranges that fit every channel closely: docs/notes/2026-11-28-quantization.md has the figures.
    return Recipe(
        name="openvino-int8", smooth_alphas=(0.5, 0.7), weights="fitted", calibration_tiles=256, attention=True
    )


def onnx_recipe() -> Recipe:
    """The INT8 recipe of Q/DQ graphs, for ONNX Runtime and for engines, tried on one model only."""
    return Recipe(
        name="onnx-int8", smooth_alphas=(0.5, 0.65, 0.8), calibrator="mse", weights="fitted", patch_embed=False
    )


def nncf_recipe() -> Recipe:
    """OpenVINO's INT8 recipe for networks that cannot be folded."""
    return Recipe(name="openvino-int8-nncf", smooth_alphas=(0.5,), attention=True, quantizer="nncf")


def for_nncf(recipe: Recipe) -> Recipe:
    """A recipe with NNCF's own settings wherever it holds those that the layer-wise path has by default."""
    if recipe.quantizer == "nncf":
        return recipe
    default, own = openvino_recipe(), nncf_recipe()
    same = [name for name in Recipe.model_fields if getattr(recipe, name) == getattr(default, name)]
    return recipe.model_copy(update={"quantizer": "nncf", **{name: getattr(own, name) for name in same}})


def nncf_as_it_comes() -> Recipe:
    """What `nncf.quantize(model, dataset, model_type=ModelType.TRANSFORMER)` does by itself (NNCF 3.4)."""
    return Recipe(name="nncf-transformer", smooth_alphas=(0.95,), augmented_share=0, attention=True, quantizer="nncf")


def load_recipe(path: Path) -> Recipe:
    """Read a saved recipe.

    Raises:
        InputError: Missing, not JSON, or with fields that do not fit.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file, expected a recipe", hint="write one with save_recipe")
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}", hint="see the fields of Recipe") from error


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON that `load_recipe` reads."""
    write_atomic(path, (json.dumps(recipe.model_dump(), indent=2) + "\n").encode())
