"""`config.json` of a model folder in timm's form, read as timm reads it.

timm takes the preprocessing from `pretrained_cfg`, or from the top of the file where there is none, and ImageNet's
mean and deviation where neither states them; `global_pool` and `num_features` at the top it leaves unread.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atlas_edge.errors import InputError
from atlas_edge.spec import MppRange, Pooling

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A config with the names of all classes of ImageNet-21k has 2 MB.
_MOST_BYTES = 1 << 24
# Of the tokens: they need nothing that the network lacks.
_POOLINGS: tuple[Pooling, ...] = ("cls", "cls+mean", "avg")
_FORM = "give timm's form: architecture, model_args, pretrained_cfg"
_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]
_Side = Annotated[int, Field(gt=0, le=16384)]


class Stated(BaseModel):
    """What the folder says of the tiles that the network takes, and of itself.

    Attributes:
        mean: Per-channel mean on the 0-1 scale; ImageNet's where it is not stated.
        std: Per-channel standard deviation on the 0-1 scale; ImageNet's where it is not stated.
        input_size: Channels, height, width.
        fixed_input_size: Whether timm builds the network for `input_size`.
        classifier: The layers that timm takes for the classifier.
        license: SPDX name of the weights' licence.
        mpp: µm per pixel that the encoder was trained at.
        mpp_range: Finest and coarsest, where it was trained at all between them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    mean: tuple[_Mean, _Mean, _Mean] = IMAGENET_MEAN
    std: tuple[_Deviation, _Deviation, _Deviation] = IMAGENET_STD
    input_size: tuple[int, _Side, _Side] = (3, 224, 224)
    fixed_input_size: bool = False
    classifier: str | tuple[str, ...] | None = None
    license: str | None = None
    mpp: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mpp_range: MppRange | None = None

    @field_validator("input_size")
    @classmethod
    def _rgb(cls, size: tuple[int, int, int]) -> tuple[int, int, int]:
        if size[0] != 3:
            raise ValueError(f"{size[0]} channels, tiles are RGB")
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmConfig:
    """A `config.json` whose values are of the right kind.

    Attributes:
        path: The file.
        architecture: timm architecture; not yet known to be one.
        arguments: `model_args`, as they stand.
        stated: Preprocessing, size, licence.
        given: Which of `stated` the file states.
        name: A known encoder's name, where the file gives one.
        pooling: Of the tokens, where the file states it beside timm's own form.
        num_classes: Of the classifier; None where it is not stated.
        assumptions: What is not stated and was taken for granted, one sentence each.
    """

    path: Path
    architecture: str
    arguments: dict[str, Any]
    stated: Stated
    given: frozenset[str]
    name: str | None
    pooling: Pooling | None
    num_classes: int | None
    assumptions: tuple[str, ...]


def read_config(folder: Path, *, known: str | None = None) -> TimmConfig:
    """Read a model folder's `config.json`.

    Args:
        folder: The folder.
        known: Name of the known encoder that it holds, for what an error recommends.

    Raises:
        InputError: It is missing, of another form, or holds a value that cannot be.
    """
    path = folder / CONFIG
    found = _json(path)
    if "architecture" not in found and found.keys() & {"model_type", "architectures", "transformers_version"}:
        raise InputError(
            f"{path} is that of a transformers folder ({found.get('model_type') or found.get('architectures')})",
            hint=f"{import_command(folder, known)} brings it to timm's form",
        )
    architecture, arguments = found.get("architecture"), found.get("model_args") or {}
    given = found.get("pretrained_cfg", found)
    if not isinstance(architecture, str) or not isinstance(arguments, dict) or not isinstance(given, dict):
        what = "no architecture" if architecture is None else "architecture, model_args or pretrained_cfg of no use"
        raise InputError(f"{path} cannot be read: it has {what}", hint=_FORM)
    facts = {name: given[name] for name in Stated.model_fields if given.get(name) is not None}
    # Beside pretrained_cfg, in which timm refuses names that it does not know.
    facts |= {name: found[name] for name in ("mpp", "mpp_range") if found.get(name) is not None}
    pooling, name = found.get("pooling"), found.get("name")
    if pooling not in (None, *_POOLINGS):
        raise InputError(f"{path}: pooling is {str(pooling)[:80]}", hint=f"one of {', '.join(_POOLINGS)}")
    stated = stated_facts(path, facts)
    channels = arguments.get("in_chans", 3)
    if channels != 3:
        raise InputError(f"{path}: the network takes {channels} channels, tiles are RGB", hint="give an RGB encoder")
    classes = found.get("num_classes")
    missing = [name for name in ("mean", "std") if name not in facts]
    return TimmConfig(
        path=path,
        architecture=architecture,
        arguments=dict(arguments),
        stated=stated,
        given=frozenset(facts),
        name=name if isinstance(name, str) else None,
        pooling=pooling,
        num_classes=classes if isinstance(classes, int) else None,
        assumptions=(f"{CONFIG} states no {' and no '.join(missing)}: ImageNet's were taken",) if missing else (),
    )


def import_command(path: Path, known: str | None = None) -> str:
    """The command that brings a file or folder to timm's form."""
    return f"atlas-export import {path} {f'--as {known} ' if known else ''}--out FOLDER"


def stated_facts(path: Path, known: dict[str, Any]) -> Stated:
    """What a file states, checked.

    Raises:
        InputError: A value that cannot be.
    """
    try:
        return Stated.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {where} is {str(first['input'])[:80]}: {first['msg']}",
            hint="mean and std are three numbers on the 0-1 scale, input_size is [3, height, width], mpp a number"
            " in µm per pixel, mpp_range the finest and the coarsest, license a name",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path.parent} is no model folder: it has no {CONFIG}", hint=f"give a folder with {CONFIG} and {WEIGHTS}"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes, expected at most {_MOST_BYTES:,}", hint=_FORM)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error!r}", hint=_FORM) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read: it holds no table", hint=_FORM)
    return found
