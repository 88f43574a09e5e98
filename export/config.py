"""What `atlas-export` was asked for, checked before any work is done."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atlas_edge.errors import UsageError
from atlas_edge.models.load import DEFAULT_MODEL
from atlas_edge.quantize.plan import load_plan
from atlas_edge.quantize.recipe import Recipe, default_recipe, load_recipe
from atlas_edge.spec import Precision, Target
from atlas_edge.unnamed import LEFT_OUT, last_name

TileFit = Literal["exact", "crop", "resize"]

# Why a target cannot have a precision, and what to take instead.
_IMPOSSIBLE = {
    (Target.OPENVINO, Precision.FP8): "OpenVINO's CPU plugin computes no FP8; choose int8 or bf16",
    (Target.ONNX, Precision.FP8): "ONNX Runtime's CPU provider computes no FP8; choose int8, or --target tensorrt-rtx",
}


class ExportConfig(BaseModel):
    """The resolved configuration of one export; a copy goes into the bundle.

    Attributes:
        model: Registry name, model folder or `hf-hub:` name.
        target: What the bundle is built for.
        precision: Number format of the compute-heavy layers.
        recipe: How INT8 or FP8 is made; the target's default when None.
        calib: Tiles that set the quantization scales and fit the probes; the synthetic sample when None.
        eval: Tiles that the bundle is compared on; the other split of `calib`, or the synthetic sample, when None.
        out: Bundle folder; `bundles/<model>-<target>-<precision>` when None.
        batch: `(n,)` fixes the batch of the graph; `(min, opt, max)` is TensorRT's profile; empty is dynamic.
        max_drop_pp: Budget on the upper end of the drop's interval, percentage points; no gate when None.
        calib_limit: Tiles to calibrate on.
        fit_limit: Labelled calibration tiles to fit the probes on.
        eval_limit: Tiles to evaluate on.
        tile_fit: What to do with tiles of another size than the encoder takes.
        pooling: Pooling of the tokens; the model's own when None.
        tile_px: Side of the tiles that the encoder is built for, pixels; its own when None.
        patch: Patch side of a registry student, pixels.
        registers: Register tokens of a registry student.
        compute_capabilities: CUDA compute capabilities that a TensorRT-RTX engine is built for; its default when empty.
        hardware_compatible, version_compatible: An enterprise engine that also runs on later GPUs, or later versions.
        batch_independent: An embedding does not depend on the rest of its batch.
        quantize_attention: Quantize the two products of attention, too, where INT8 attention fuses.
        refit, strip: An engine whose weights can be replaced, or that leaves them in its ONNX.
        timing_cache: File that keeps enterprise TensorRT's build-time measurements.
        seed: Seed of every random choice.
        threads: Inference threads; the runtime's choice when None.
        speed: Whether to time the bundle against the reference.
        overwrite: Replace an existing bundle.
        keep_paths: Whether the bundle says how files, folders and tiles are called here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL
    target: Target
    precision: Precision
    recipe: Recipe | None = None
    calib: str | None = None
    eval: str | None = None
    out: Path | None = None
    batch: tuple[int, ...] = ()
    max_drop_pp: float | None = Field(default=None, ge=0)
    calib_limit: int = Field(default=300, ge=8)
    fit_limit: int = Field(default=600, ge=8)
    eval_limit: int = Field(default=2000, ge=8)
    tile_fit: TileFit = "exact"
    pooling: Literal["cls", "cls+mean", "avg"] | None = None
    tile_px: int | None = Field(default=None, ge=1, le=4096)
    patch: int | None = None
    registers: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    batch_independent: bool = False
    quantize_attention: bool = False
    refit: bool = False
    strip: bool = False
    timing_cache: Path | None = None
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)
    speed: bool = True
    overwrite: bool = False
    keep_paths: bool = False

    @model_validator(mode="after")
    def _possible(self) -> "ExportConfig":
        why = _IMPOSSIBLE.get((self.target, self.precision))
        if why is not None:
            raise ValueError(f"--target {self.target} --precision {self.precision}: {why}")
        engine = self.target in (Target.TENSORRT, Target.TENSORRT_RTX)
        if self.quantize_attention and not (engine and self.precision is Precision.INT8):
            raise ValueError("--quantize-attention is for --target tensorrt or tensorrt-rtx in --precision int8")
        if self.recipe is not None and self.precision not in (Precision.INT8, Precision.FP8):
            raise ValueError(f"--recipe says how INT8 is made, --precision {self.precision} has no use for it")
        if any(size < 1 for size in self.batch):
            raise ValueError("--batch: sizes start at 1")
        if len(self.batch) == 3:
            if not engine:
                raise ValueError(f"--batch min,opt,max is TensorRT's; --target {self.target} takes one size")
            if list(self.batch) != sorted(self.batch):
                raise ValueError("--batch min,opt,max must not fall")
        elif len(self.batch) > 1:
            raise ValueError("--batch takes one size, or min,opt,max")
        return self

    @property
    def output(self) -> Path:
        """Where the bundle goes."""
        if self.out is not None:
            return self.out
        stem = Path(self.model.rpartition(":")[2]).name or "model"
        if self.patch is not None:
            stem += f"-patch{self.patch}"
        if self.tile_px is not None:
            stem += f"-{self.tile_px}px"
        return Path("bundles") / f"{stem}-{self.target}-{self.precision}"

    def for_manifest(self) -> dict[str, Any]:
        """The options as they stand in a bundle; paths as names of what was given, unless `keep_paths`."""
        options = self.model_dump(mode="json", exclude={"out", "overwrite"})
        if not self.keep_paths:
            options |= {name: LEFT_OUT for name in ("calib", "eval", "timing_cache") if options[name] is not None}
            options["model"] = last_name(self.model)
        return options

    @property
    def int8_recipe(self) -> Recipe:
        """The recipe that was asked for, or the target's default."""
        return self.recipe or default_recipe(self.target)

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size of the graph, or None for a dynamic one."""
        return self.batch[0] if len(self.batch) == 1 else None


def resolve(*, plan: Path | None = None, recipe: Path | None = None, **values: object) -> ExportConfig:
    """Build the configuration.

    Args:
        plan: A saved plan: target, precision and recipe, and the limits and seed that `values` leave open.
        recipe: A saved recipe.
        values: Fields of `ExportConfig`; None where the plan, or else the default, decides.

    Raises:
        UsageError: A value is out of range or contradicts another.
        InputError: The plan or the recipe cannot be read.
    """
    values = {name: value for name, value in values.items() if value is not None}
    if plan is not None:
        values = _planned(plan, recipe, values)
    elif recipe is not None:
        values["recipe"] = load_recipe(recipe)
    for option in ("target", "precision"):
        if values.get(option) is None:
            raise UsageError(f"--{option} is missing", hint=f"give --{option}, or --plan with one in it")
    try:
        return ExportConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_pp", "").replace("_", "-") + ": " if first["loc"] else ""
        raise UsageError(
            f"{option}{first['msg'].removeprefix('Value error, ')}", hint="see atlas-export --help"
        ) from error


def _planned(path: Path, recipe: Path | None, values: dict[str, object]) -> dict[str, object]:
    saved = load_plan(path)
    own = {"target": saved.plan.target.value, "precision": saved.plan.precision.value}
    for option, value in own.items():
        if values.get(option) not in (None, value):
            raise UsageError(
                f"--{option} {values[option]}, but {path} is a plan for {value}", hint=f"leave --{option} out"
            )
    if recipe is not None:
        raise UsageError(f"{path} holds a recipe of its own", hint="leave --recipe or --plan out")
    limits = {"calib_limit": saved.calib_limit, "fit_limit": saved.fit_limit, "seed": saved.seed}
    return {**limits, **values, **own, "recipe": saved.plan.recipe}
