"""Options of the command lines: each command's are one dataclass, which the command line flattens."""

import dataclasses
import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Ge
from cyclopts import Parameter, validators

from atlas_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

Flag = Annotated[bool, Parameter(negative="")]
"""A switch without `--no-`."""

Json = Annotated[bool, Parameter(name="--json", negative="")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")]
Many = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]
Threads = Annotated[int | None, Ge(1), Parameter(validator=validators.Number(gte=1))]
"""Of inference, or its streams; None is the runtime's own choice. Runtimes read 0 and less each in its own way."""
Count = Annotated[int, Ge(1), Parameter(validator=validators.Number(gte=1))]
"""Of what there must be one at least."""
Limit = Annotated[int | None, Ge(1), Parameter(validator=validators.Number(gte=1))]
"""Most tiles; None for all."""
Seed = Annotated[int, Ge(0), Parameter(validator=validators.Number(gte=0))]
"""Of what is drawn; NumPy takes none below 0."""

TileFit = Literal["exact", "crop", "resize"]
"""What to do with tiles of another size than an encoder takes."""

Stain = Literal["he", "ihc", "special", "dark"]
"""What a slide is stained with, for the tissue finder."""

NotTyped = Parameter(parse=False)
"""In `Annotated`: a field that the command line does not take."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of options that are checked against their annotations, limits such as `annotated_types.Ge` among them.

    A subclass is a frozen, keyword-only dataclass. Its docstring is what `--help` says of each field.

    Raises:
        UsageError: A value is out of its range; it is named as it is on the command line.
    """

    def __post_init__(self) -> None:
        # Pydantic is loaded for what was given only: --help builds the defaults.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not field.default:
                object.__setattr__(self, field.name, _checked(type(self), field.name, value))

    def as_json(self, *, include: Collection[str] | None = None, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The values as plain data."""
        from pydantic_core import to_jsonable_python

        names = [field.name for field in dataclasses.fields(self) if include is None or field.name in include]
        return {name: to_jsonable_python(getattr(self, name)) for name in names if name not in exclude}


@dataclass(frozen=True, kw_only=True)
class Running(Options):
    """On what an encoder runs.

    Attributes:
        device: As the bundle's runtime calls it: GPU, NPU, AUTO (OpenVINO), cuda:1, directml, openvino:gpu, rtx (ONNX
            Runtime), cuda:1 (TensorRT); chosen by the runtime when left out.
        cache: Folder to keep compiled models in (OpenVINO, TensorRT-RTX): the next start is faster.
    """

    device: str | None = None
    cache: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command prints.

    Attributes:
        json: Print the results as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """

    json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False

    def screen(self) -> "Console":
        """Set the log levels, and return the console for progress and tables."""
        from atlas_edge.cli import console, set_verbosity

        set_verbosity(quiet=self.quiet, verbose=self.verbose)
        return console(quiet=self.quiet)


def out_of_range(option: str, error: Any) -> str:
    """What pydantic found wrong with an option, in one line."""
    first = error.errors()[0]
    found = "nothing" if first["input"] in ((), "") else first["input"]
    return f"{option} is {found}: {first['msg']}"


def _checked(kind: Any, name: str, value: Any) -> Any:
    from pydantic import ValidationError

    option, adapter = _option(kind, name)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise UsageError(out_of_range(option, error), hint="see the command's --help") from error


@functools.cache
def _option(kind: Any, name: str) -> tuple[str, Any]:
    """What the command line calls a field, and what checks it."""
    from pydantic import ConfigDict, TypeAdapter

    hint = get_type_hints(kind, include_extras=True)[name]
    named = [next(iter(item.name)) for item in get_args(hint)[1:] if isinstance(item, Parameter) and item.name]
    return named[0] if named else f"--{name.replace('_', '-')}", TypeAdapter(
        hint, config=ConfigDict(allow_inf_nan=False)
    )
