"""What `atlas-export` was asked for, checked before any work is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from atlas_edge.errors import UsageError
from atlas_edge.export.backends.base import backend_of
from atlas_edge.export.options import Choices
from atlas_edge.models.load import DEFAULT_MODEL
from atlas_edge.quantize.plan import load_plan
from atlas_edge.quantize.recipe import Recipe, for_merging, for_portable, load_recipe
from atlas_edge.spec import Precision, Target
from atlas_edge.unnamed import LEFT_OUT, last_name


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Choices):
    """The resolved configuration of one export; a copy goes into the bundle.

    Attributes:
        model: Registry name, model folder or `hf-hub:` name.
        target: What the bundle is built for.
        precision: Number format of the compute-heavy layers.
        recipe: How INT8 or FP8 is made; the target's default when None.
        batch: `(n,)` fixes the batch of the graph; `(min, opt, max)` is TensorRT's profile; empty is dynamic.
        calib_limit: Tiles to calibrate on.
        fit_limit: Labelled calibration tiles to fit the probes on.
        eval_limit: Tiles to evaluate on.
        compute_capabilities: CUDA compute capabilities that a TensorRT-RTX engine is built for; its default when empty.
        seed: Seed of every random choice.
    """

    model: str = DEFAULT_MODEL
    target: Target
    precision: Precision
    recipe: Recipe | None = None
    batch: tuple[int, ...] = ()
    calib_limit: Annotated[int, Ge(8)] = 300
    fit_limit: Annotated[int, Ge(8)] = 600
    eval_limit: Annotated[int, Ge(8)] = 2000
    compute_capabilities: tuple[str, ...] = ()
    seed: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        why = self._contradiction()
        if why is not None:
            raise UsageError(why, hint="see atlas-export --help")

    def _contradiction(self) -> str | None:
        backend = backend_of(self.target)
        engine = backend.library is not None
        if self.precision in backend.impossible:
            return f"--target {self.target} --precision {self.precision}: {backend.impossible[self.precision]}"
        if self.quantize_attention and not (engine and self.precision is Precision.INT8):
            return "--quantize-attention is for --target tensorrt or tensorrt-rtx in --precision int8"
        if self.portable and (engine or self.precision is not Precision.INT8):
            return "--portable is for --target onnx or openvino in --precision int8; others add exactly as they are"
        if self._merging and self.graph_output == "tokens":
            return "--merge-tokens leaves fewer patch tokens than --output tokens gives"
        if self._merging and self.precision is not Precision.INT8:
            return "--merge-tokens, in a recipe, too, is for --precision int8"
        if self.recipe is not None and self.precision not in (Precision.INT8, Precision.FP8):
            return f"--recipe says how INT8 is made, --precision {self.precision} has no use for it"
        if any(size < 1 for size in self.batch):
            return "--batch: sizes start at 1"
        if len(self.batch) == 3 and not engine:
            return f"--batch min,opt,max is TensorRT's; --target {self.target} takes one size"
        if len(self.batch) == 3 and list(self.batch) != sorted(self.batch):
            return "--batch min,opt,max must not fall"
        return "--batch takes one size, or min,opt,max" if len(self.batch) not in (0, 1, 3) else None

    @property
    def _merging(self) -> bool:
        factor = self.merge_tokens if self.recipe is None or self.merge_tokens is not None else self.recipe.merge_tokens
        return (factor or 1) != 1

    @property
    def output(self) -> Path:
        """Where the bundle goes."""
        return self.out or self._named(f"{self.target}-{self.precision}")

    @property
    def package_output(self) -> Path:
        """Where a package with this variant goes."""
        return self.out or self._named("package")

    def _named(self, kind: str) -> Path:
        stem = Path(self.model.rpartition(":")[2]).name or "model"
        if self.patch is not None:
            stem += f"-patch{self.patch}"
        if self.tile_px is not None:
            stem += f"-{self.tile_px}px"
        tokens = "-tokens" if self.graph_output == "tokens" else ""
        portable = "-portable" if self.portable else ""
        merged = f"-merged{self.merge_tokens:g}" if self.merge_tokens not in (None, 1) else ""
        return Path("bundles") / f"{stem}-{kind}{portable}{merged}{tokens}"

    def for_manifest(self) -> dict[str, Any]:
        """The options as they stand in a bundle; paths as names of what was given, unless `keep_paths`."""
        options = self.as_json(exclude=("out", "overwrite"))
        if not self.keep_paths:
            options |= {name: LEFT_OUT for name in ("calib", "eval", "timing_cache") if options[name] is not None}
            options["model"] = last_name(self.model)
        return options

    @property
    def int8_recipe(self) -> Recipe:
        """The recipe that was asked for, or the target's default."""
        recipe = self.recipe or backend_of(self.target).default_recipe(self.precision)
        if self.portable:
            recipe = for_portable(recipe)
        if self.merge_tokens is not None:
            recipe = for_merging(recipe, self.merge_tokens)
        if not self.quantize_attention:
            return recipe
        return recipe.model_copy(update={"name": f"{recipe.name}-attention", "attention": True})

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size of the graph, or None for a dynamic one."""
        return self.batch[0] if len(self.batch) == 1 else None


def resolve(*, plan: Path | None = None, recipe: Path | None = None, **values: Any) -> ExportConfig:
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
    return ExportConfig(**values)


def _planned(path: Path, recipe: Path | None, values: dict[str, Any]) -> dict[str, Any]:
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
