"""What the commands of `atlas-quantize` can be asked; nothing heavy is imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from cyclopts import Parameter

from atlas_edge.options import Flag, Options, Seed, Threads, TileFit
from atlas_edge.targets import Target

DEFAULT_DROP_PP = 2.5


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(Options):
    """Which tiles `atlas-quantize calibration` chooses.

    Attributes:
        eval: Tiles that will judge; the test split of TILES where it has one. Slides in both are an error.
        limit: Most tiles to choose.
        contact_sheet: Write the chosen tiles to this PNG.
        tile_fit: What to do with tiles of another size than the encoder's.
        seed: Another seed chooses other tiles.
        dry_run: Choose, but run no model and write nothing.
    """

    eval: str | None = None
    limit: Annotated[int, Ge(1)] = 300
    contact_sheet: Path | None = None
    tile_fit: TileFit = "exact"
    seed: Seed = 0
    dry_run: Flag = False


@dataclass(frozen=True, kw_only=True)
class RecipeChanges(Options):
    """What becomes of a recipe: its fields, as the command line calls them.

    Attributes:
        name: What reports call it.
        smooth_alphas: SmoothQuant strengths to choose from; -1 turns it off. May be given several times.
        calibrator: How the range of an activation is set.
        weights: Round weights to the nearest, or fit them to what they read.
        weight_bits: Bits of a weight; 7 make a portable file, which any runtime computes rightly on any processor.
        quantizer: OpenVINO only: layer by layer, or NNCF.
        attention: Quantize the two matrix products of attention.
        patch_embed: Quantize the patch embedding.
        bias_correction: Correct the mean shift that rounded weights cause.
        augmented_share: Share of the tiles that set ranges which are copies with bare glass or brown stain.
        merge_tokens: How many times less the blocks compute because tokens that are alike become one; 1 merges none.
        exclude: Layers to leave in floating point, such as blocks.3.mlp.fc2; * matches anything. May be given several
            times.
    """

    name: Annotated[str | None, Parameter(name="--rename")] = None
    smooth_alphas: Annotated[tuple[float, ...] | None, Parameter(name="--smooth-alpha")] = None
    calibrator: Literal["max", "percentile", "mse", "entropy"] | None = None
    weights: Literal["nearest", "fitted"] | None = None
    weight_bits: int | None = None
    quantizer: Literal["layers", "nncf"] | None = None
    attention: bool | None = None
    patch_embed: bool | None = None
    bias_correction: bool | None = None
    augmented_share: float | None = None
    merge_tokens: float | None = None
    exclude: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions(Options):
    """What `atlas-quantize sensitivity` measures.

    Attributes:
        target: Whose rounding is imitated: activations from -max to max, or (openvino) between their extremes.
        recipe: Saved recipe; the target's default when left out.
        out: Folder for sensitivity.json and sensitivity.svg.
        count: Tiles that the errors are means over.
        calib_limit: Other tiles, which set the ranges.
        without: Measure all but one, too, for twice the time.
        tile_fit: What to do with tiles of another size than the encoder's.
        seed: Another seed chooses other tiles.
        overwrite: Replace an existing folder.
    """

    target: Target = Target.OPENVINO
    recipe: Path | None = None
    out: Path | None = None
    count: Annotated[int, Ge(1)] = 16
    calib_limit: Annotated[int, Ge(1)] = 64
    without: bool = True
    tile_fit: TileFit = "exact"
    seed: Seed = 0
    overwrite: Flag = False


@dataclass(frozen=True, kw_only=True)
class Limits(Options):
    """On how many tiles plans are measured, and how.

    Attributes:
        calib_limit: Most tiles to calibrate on.
        fit_limit: Most tiles to fit the probe on.
        eval_limit: Most tiles to judge on.
        tile_fit: What to do with tiles of another size than the encoder's.
        threads: Inference threads; the runtime's own choice when left out.
        seed: Seed of every random choice.
    """

    calib_limit: Annotated[int, Ge(1)] = 300
    fit_limit: Annotated[int, Ge(1)] = 1500
    eval_limit: Annotated[int, Ge(1)] = 2000
    tile_fit: TileFit = "exact"
    threads: Threads = None
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class SearchBudget(Options):
    """What a plan may cost.

    Attributes:
        max_drop_pp: Budget on the upper end of the drop's 95 % interval, percentage points; 2.5 when no budget is
            given.
        max_flip_percent: Budget on the upper end of the share of changed predictions, per cent.
        min_cosine: Least 1st percentile of the cosine, at the lower end of its interval.
    """

    max_drop_pp: Annotated[float | None, Ge(0), Parameter(name="--max-drop")] = None
    max_flip_percent: Annotated[float | None, Ge(0), Le(100), Parameter(name="--max-flips")] = None
    min_cosine: Annotated[float | None, Ge(-1), Le(1)] = None


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """How a model is taught to be its quantized self.

    Attributes:
        recipe: Saved recipe to begin with; weights of --weight-bits when left out, fitted where the network allows it.
        weight_bits: Bits of a weight where no recipe is given.
        steps: Training steps of 8 tiles.
        lr: Largest change of a weight, norm or bias in a step, as a share of the size of its channel.
        range_lr: The same of the range of a layer's input; 0 trains no ranges.
        limit: Most tiles to train on.
        tile_fit: What to do with tiles of another size than the encoder's.
        seed: Another seed trains in another order.
        overwrite: Replace an existing OUT.
    """

    recipe: Path | None = None
    weight_bits: int = 8
    steps: int = 120
    lr: float = 1e-5
    range_lr: float = 0.02
    limit: Annotated[int, Ge(1)] = 300
    tile_fit: TileFit = "exact"
    seed: Seed = 0
    overwrite: Flag = False
