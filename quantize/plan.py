"""Precision plans: which number format and recipe an encoder gets on a target, saved with what was measured of it."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atlas_edge.errors import InputError
from atlas_edge.manifest import ModelProvenance, TilesProvenance
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.spec import Precision, Target
from atlas_edge.system.atomic import write_atomic


class Plan(BaseModel):
    """One choice.

    Attributes:
        name: What reports call it.
        target: What it is for.
        precision: Number format of the compute-heavy layers.
        recipe: How INT8 or FP8 is made; None for floating point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    target: Target
    precision: Precision
    recipe: Recipe | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Plan":
        if (self.recipe is not None) != (self.precision in (Precision.INT8, Precision.FP8)):
            raise ValueError(f"precision {self.precision} and a recipe: INT8 and FP8 have one, the others have none")
        return self


class SavedPlan(BaseModel):
    """A plan with where it came from; what `atlas-export --plan` reads.

    Attributes:
        plan: The choice.
        model: The model that it was measured on.
        calibration: Tiles that set the scales; None for floating point.
        calib_limit, fit_limit, seed: How those tiles are chosen again from the same source.
        measured: Figures of the final check.
        versions: Of the libraries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    plan: Plan
    model: ModelProvenance
    calibration: TilesProvenance | None = None
    calib_limit: int = 300
    fit_limit: int = 1500
    seed: int = 0
    measured: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


def load_plan(path: Path) -> SavedPlan:
    """Read a saved plan.

    Raises:
        InputError: Missing, not JSON, or with fields that do not fit.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file, expected a plan", hint="make one with atlas-quantize search MODEL TILES")
    try:
        return SavedPlan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: {where}: {first['msg']}", hint="a recipe goes to --recipe, a plan to --plan"
        ) from error


def save_plan(plan: SavedPlan, path: Path) -> None:
    """Write a plan as JSON that `load_plan` reads."""
    write_atomic(path, (json.dumps(plan.model_dump(mode="json"), indent=2) + "\n").encode())
